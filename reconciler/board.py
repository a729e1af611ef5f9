"""What this controller knows at the moment, for people and programs that ask: a few frozen values, replaced as a whole."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import structlog

from agent.clock import Clock
from reconciler.execution.leadership import Term
from reconciler.execution.publish import Sent
from reconciler.model.desired import DesiredState
from reconciler.model.observed import ObservedState, Presence
from reconciler.model.plan import Plan
from reconciler.news import Heard, listed, steps
from reconciler.source.sourced import Sourced

log = structlog.get_logger("events")

EVENTS = 1000
_WELL = frozenset(
    {
        "LEADING",
        "STANDING_BY",
        "PLAN_RESUMED",
        "COMMIT_IN_FORCE",
        "CHANGING",
        "SENT",
        "STEP_DONE",
        "CONVERGED",
        "HEALTHY",
    }
    | {"NODE_BACK"}
)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, once: `number` only grows within one controller."""

    number: int
    at: str  # ISO 8601, UTC
    code: str
    detail: str
    fields: dict[str, Any] = field(default_factory=dict)


class Board:
    """The latest of everything, and the recent events. Read by the API; written by the loop only."""

    def __init__(self, cluster: str, clock: Clock) -> None:
        self.cluster = cluster
        self._clock = clock
        self._numbers = count(1)
        self._listeners: list[Callable[[], None]] = []
        self._said: dict[str, str] = {}
        self._resumes = ""  # the commit that an earlier leader may not have carried out wholly
        self._unknown: dict[str, tuple[int, int]] = {}  # node → what it was sent and did not answer …
        self._attempts: Counter[str] = Counter()  # … and how often it did not, one after the other
        self._heard = Heard()
        self.events: deque[Event] = deque(maxlen=EVENTS)
        self.term: Term | None = None
        self.source: Sourced | None = None
        self.desired: DesiredState | None = None
        self.observed: ObservedState | None = None
        self.plan: Plan | None = None
        self.suspended: Mapping[str, str] = {}  # instance ("": all) → who suspended it, and why
        self.error: str = ""
        self.closed = False

    def close(self) -> None:
        """Nobody waits for events any more: every waiting reader is answered at once."""
        self.closed = True
        for listener in list(self._listeners):
            listener()

    def leads(self, term: Term, in_force: str | None = None) -> None:
        """This controller leads with this term; `in_force` is the commit that an earlier leader carried out, if there was one."""
        self.term = term
        # What was so when it led before may not be any more.
        self.source = self.desired = self.observed = self.plan = None
        self._resumes, self._unknown, self._heard = in_force or "", {}, Heard()
        self._attempts.clear()
        self.error = ""
        self._event("LEADING", f"leads with epoch {term.epoch}", epoch=term.epoch)

    def follows(self) -> None:
        """This controller does not lead (any more)."""
        if self.term is not None:
            self._event("STANDING_BY", self.term.why or "does not lead any more")
        self.term = None

    def trouble(self, error: BaseException) -> None:
        """Something did not work; it is said once until it changes."""
        self.error = str(error)
        self._once("trouble", *_told(error))

    def sourced(self, sourced: Sourced) -> None:
        """A look at Git ended like this."""
        if sourced is self.source:
            return
        self.source = sourced
        if sourced.trouble is not None:
            self._once("git", *_told(sourced.trouble))
        elif sourced.problems:
            self._once(
                "git",
                "COMMIT_REJECTED",
                f"commit {sourced.commit[:8]} rejected: {len(sourced.problems)} problem(s), first {sourced.problems[0]}",
                commit=sourced.commit,
            )
        elif sourced.desired is not None and sourced.rollback is not None:
            back = sourced.rollback
            self._once(
                "git",
                "ROLLED_BACK",
                f"commit {back.to[:8]} is in force instead of {back.left[:8]}, by {back.who}"
                + (f": {back.why}" if back.why else ""),
            )
        elif sourced.desired is not None:
            self._once(
                "git", "COMMIT_IN_FORCE", f"commit {sourced.desired.commit[:8]} is in force: {sourced.desired.subject}"
            )

    def reverted(self, what: str) -> None:
        """A failed rollout took the commit back, or could not."""
        self._event("AUTO_REVERT", what)

    def found(self, observed: ObservedState, plan: Plan) -> None:
        """The fleet looks like this, and this is what will be done about it."""
        for news in self._heard.news(observed, plan):
            self._event(news.code, news.detail, names=list(news.names))

    def planned(self, desired: DesiredState, observed: ObservedState, plan: Plan, sent: tuple[Sent, ...]) -> None:
        """A cycle ended with this plan."""
        self.desired, self.observed, self.plan, self.error = desired, observed, plan, ""
        self._said.pop("trouble", None)  # it is over, and news if it comes again
        self._take_up(observed, plan)
        doing = steps(plan, observed, (one.node for one in sent))
        for one in sent:
            self._sent(one, listed(doing.get(one.node, ())))
        done = "CHANGING" if plan.changes else "HEALTHY" if plan.healthy else "CONVERGED"
        self._once("plan", done, f"commit {plan.commit[:8]}: {len(plan.changes)} change(s), {len(plan.holds)} held")
        for listener in list(self._listeners):
            listener()

    def _sent(self, one: Sent, doing: str) -> None:
        what = f"{one.node}: assignment {one.epoch}.{one.generation}"
        if one.unknown:
            self._unknown[one.node] = (one.epoch, one.generation)
            self._attempts[one.node] += 1
            code, attempt = "STEP_TIMEOUT" if one.late else "STEP_UNKNOWN", self._attempts[one.node]
            detail = f"{what}, attempt {attempt}, may have arrived: {one.error}"
            self._once(f"send {one.node}", code, detail, node=one.node, attempt=attempt)
            return
        self._answered(one.node)
        if one.error:
            self._once(f"send {one.node}", "NOT_SENT", f"{one.node}: {one.error}", node=one.node)
            return
        self._said.pop(f"send {one.node}", None)
        self._event("SENT", f"{what}: {doing}" if doing else what, node=one.node)

    def _answered(self, node: str) -> None:
        """It is known what became of all that the node was sent."""
        self._unknown.pop(node, None)
        self._attempts.pop(node, None)

    def _take_up(self, observed: ObservedState, plan: Plan) -> None:
        """What was open is known: whether a node has what it did not answer, and what an earlier leader left to do."""
        for name, step in list(self._unknown.items()):
            accepted = observed.nodes[name].accepted if name in observed.nodes else None
            if accepted is not None and (accepted.epoch, accepted.generation) >= step:
                self._answered(name)
                self._event("STEP_DONE", f"{name}: assignment {step[0]}.{step[1]} had arrived", node=name)
        if self._resumes and not any(view.presence is Presence.JOINING for view in observed.nodes.values()):
            if plan.changes and plan.commit == self._resumes:
                left = len(plan.changes)
                self._event("PLAN_RESUMED", f"commit {plan.commit[:8]} goes on: {left} change(s) left", left=left)
            self._resumes = ""

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` after each event or plan; returns a function that ends this."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def _once(self, subject: str, code: str, detail: str, **fields: Any) -> None:
        if self._said.get(subject) != code + detail:
            self._said[subject] = code + detail
            self._event(code, detail, **fields)

    def _event(self, code: str, detail: str, **fields: Any) -> None:
        at = f"{self._clock.wall():%Y-%m-%dT%H:%M:%S.%fZ}"
        self.events.append(Event(next(self._numbers), at, code, detail, fields))
        (log.info if code in _WELL else log.warning)(code, detail=detail, **fields)
        for listener in list(self._listeners):
            listener()


def _told(error: BaseException) -> tuple[str, str]:
    """The error's code, and the rest of what it says."""
    code = str(getattr(error, "code", "ERROR"))
    return code, str(error).replace(f"{code} ", "", 1)
