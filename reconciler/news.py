"""What is new about fleet and plan, in words: nodes that go and come back, what crashes or is wrong, what waits for people."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from agent.wire import NodeProblem, ReplicaState
from reconciler.doctor import NEXT
from reconciler.model.observed import NodeView, ObservedState, Presence, ReplicaView
from reconciler.model.plan import Cause, Change, Hold, HoldReason, NodeTarget, Plan, Verdict

NAMED = 5  # of many that have the same news
_GIVEN_UP = {ReplicaState.BACKOFF: "CRASH_LOOP", ReplicaState.FAILED: "FAILED"}


@dataclass(frozen=True, slots=True)
class News:
    """One thing to tell, about all of these nodes or instances."""

    code: str
    detail: str
    names: tuple[str, ...]


@dataclass(slots=True)
class Heard:
    """What was told already, so that everything is told once and again after it was over."""

    _views: Mapping[str, NodeView] = field(default_factory=dict)
    _missed: dict[str, str] = field(default_factory=dict)  # node → code of how
    _problems: dict[str, frozenset[NodeProblem]] = field(default_factory=dict)
    _waits: Mapping[HoldReason, Mapping[str, Hold]] = field(default_factory=dict)

    def news(self, observed: ObservedState, plan: Plan) -> list[News]:
        """What nobody was told yet; of many nodes or instances with the same news together. Looks only at what changed."""
        before, self._views = self._views, observed.nodes
        changed = [view for name, view in observed.nodes.items() if before.get(name) is not view]
        return [
            *self._nodes(changed),
            *self._wrong(changed),
            *_crashes((before[view.name], view) for view in changed if view.name in before),
            *self._holds(plan, observed),
        ]

    def _nodes(self, changed: Iterable[NodeView]) -> Iterator[News]:
        found: dict[str, dict[str, str]] = defaultdict(dict)
        for view in changed:
            before, now = self._missed.get(view.name, ""), _missed(view)
            if now:
                self._missed[view.name] = now
            elif before and view.presence is Presence.ALIVE:
                del self._missed[view.name]
                found["NODE_BACK"][view.name] = "is alive again"
            if now and now != before:
                found[now][view.name] = view.detail + _leases(view)
        yield from _together(found)

    def _wrong(self, changed: Iterable[NodeView]) -> Iterator[News]:
        found: dict[str, dict[str, str]] = defaultdict(dict)
        for view in changed:
            problems = frozenset(view.problems)
            for problem in view.problems:
                if problem not in self._problems.get(view.name, ()):
                    found[problem.code].setdefault(view.name, problem.detail)
            self._problems[view.name] = problems
        yield from _together(found)

    def _holds(self, plan: Plan, observed: ObservedState) -> Iterator[News]:
        waits: dict[HoldReason, dict[str, Hold]] = defaultdict(dict)
        for hold in plan.holds:
            if hold.reason in NEXT:
                waits[hold.reason].setdefault(hold.instance, hold)
        if HoldReason.NO_PLACE in waits and _gathers(observed):
            del waits[HoldReason.NO_PLACE]
        for reason, holds in waits.items():
            told = self._waits.get(reason, {})
            new = {name: hold.detail for name, hold in holds.items() if name not in told}
            if new:
                todo = NEXT[reason].replace("INSTANCE", next(iter(new)))
                yield News(reason.value, f"{_several(new)} (next: {todo})", tuple(new))
        self._waits = waits


def _crashes(looks: Iterable[tuple[NodeView, NodeView]]) -> Iterator[News]:
    """Replicas that ended by themselves between two looks at their node (FAULTS row 35)."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for before, now in looks:
        for name, row in now.replicas.items():
            earlier = before.replicas.get(name)
            if earlier is not None and earlier is not row and (code := _crash(earlier, row)):
                found[code][name] = f"on {now.name}, {row.last_error or row.state.value}"
    yield from _together(found)


def _crash(before: ReplicaView, now: ReplicaView) -> str:
    if now.state is not before.state and now.state in _GIVEN_UP:
        return _GIVEN_UP[now.state]
    return "CRASHED" if now.restarts > before.restarts else ""


def _gathers(observed: ObservedState) -> bool:
    """Whether this leadership has only begun to hear of its nodes: that nothing has a place then means nothing."""
    presences = {view.presence for view in observed.nodes.values()}
    return Presence.ALIVE not in presences or Presence.JOINING in presences


def _missed(view: NodeView) -> str:
    """The code of how a node is missed, if it is (FAULTS rows 22, 33)."""
    match view.presence:
        case Presence.LOST:
            return "NODE_LOST"
        case Presence.UNREACHABLE:
            return "AGENT_DOWN" if view.vanishing else "UNREACHABLE"
    return ""


def _leases(view: NodeView) -> str:
    held = sum(row.lease is not None and not row.lease.missing for row in view.replicas.values())
    return f"; it held the leases of {held} replica{'' if held == 1 else 's'}" if held else ""


def _together(found: Mapping[str, Mapping[str, str]]) -> Iterator[News]:
    for code, said in found.items():
        yield News(code, _several(said), tuple(said))


def _several(said: Mapping[str, str]) -> str:
    """The first of them in words, and who else."""
    names = list(said)
    first, others = f"{names[0]}: {said[names[0]]}", names[1:]
    if not others:
        return first
    listed = ", ".join(others[:NAMED]) + (", …" if len(others) > NAMED else "")
    return f"{first}; and so {len(others)} more: {listed}"


def steps(plan: Plan, observed: ObservedState, nodes: Iterable[str]) -> dict[str, list[str]]:
    """What each of these nodes is told to do now, in words, without what is held."""
    wanted, held = frozenset(nodes), {hold.change for hold in plan.holds}
    found = {name: _fetches(plan.targets[name], observed.nodes[name]) for name in wanted}
    for change in plan.changes if wanted else ():
        for node in {change.node, change.from_node} & wanted:
            if change.id not in held:
                found[node].append(_step(change, node))
    return found


def _fetches(target: NodeTarget, view: NodeView) -> list[str]:
    lacks = [str(order.package) for order in target.packages if order.package.digest not in view.installed]
    return [f"fetch {lacks[0]}" if len(lacks) == 1 else f"fetch {len(lacks)} packages"] if lacks else []


def _step(change: Change, node: str) -> str:
    words = f"{change.verdict.value} {change.replica}"
    if change.verdict is Verdict.MOVE:
        words += f" to {change.node}" if node == change.from_node else f" from {change.from_node}"
    return words if change.cause is Cause.COMMIT else f"{words} ({change.reason or change.cause.value})"


def listed(words: Sequence[str]) -> str:
    """These words, or the first of them and how many more there are."""
    more = len(words) - NAMED
    return ", ".join(words[:NAMED]) + (f" and {more} more" if more > 0 else "")
