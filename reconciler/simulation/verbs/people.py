"""What people ask of the controller that leads."""

from __future__ import annotations

from agent.errors import Refused, Waiting
from reconciler.execution.approvals import promoted
from reconciler.loop import Loop
from reconciler.simulation.verbs import Verbs
from reconciler.simulation.world import World


class People:
    """Ann, who approves, confirms, rolls back, suspends, drains and locks; raises Waiting (NO_LEADER) while nobody leads."""

    def __init__(self, world: World) -> None:
        self.world = world

    def verbs(self) -> Verbs:
        return (
            (r"apply", self._apply),
            (r"confirm (prune|lost)", self._confirm),
            (r"rollback(?: to (\d+))?", self._rollback),
            (r"cancel rollback", self._cancel),
            (r"history", self._history),
            (r"suspend ?(\S*)", self._suspend),
            (r"resume ?(\S*)", self._resume),
            (r"drain (\S+)(?: within ([\d.]+)s)?", self._drain),
            (r"cordon (\S+)", self._cordon),
            (r"uncordon (\S+)", self._uncordon),
            (r"lock (\S+)", self._lock),
            (r"unlock (\S+)", self._unlock),
        )

    async def _apply(self) -> None:
        """A person approves the plan as it stands."""
        leader, session = self._leading()
        if leader.board.plan is not None:
            ids = frozenset(change.id for change in leader.board.plan.changes)
            with leader.changing_record() as record:
                await record.approve(ids, "ann", session, promoted=promoted(leader.board.plan, ids))

    async def _confirm(self, what: str) -> None:
        """A person confirms what the plan shows as held."""
        leader, session = self._leading()
        if (shown := leader.board.plan) is None:
            return
        with leader.changing_record() as record:
            if what == "prune":
                await record.confirm_prune(shown.prune_digest, "ann", session)
            else:
                await record.confirm_lost(shown.lost_digest, "ann", session)

    async def _rollback(self, to: str | None) -> str:
        """A person goes back to a commit, or to the last good one."""
        leader, session = self._leading()
        sourced = leader.board.source
        if sourced is None:
            return "nothing is in force"
        try:
            way = await leader.rollbacks.way(sourced, f"{int(to):040x}" if to else None)
        except Refused as error:
            return str(error)
        await leader.rollbacks.go(way, sourced, session, who="ann", why="it breaks orders")
        leader.look()
        return f"from {way.left.subject} to {way.to.subject}"

    async def _cancel(self) -> None:
        leader, session = self._leading()
        await leader.rollbacks.cancel(session)
        leader.look()

    async def _history(self) -> str:
        leader, _ = self._leading()
        entries = reversed(await leader.history.load())
        return "\n".join(f"{e.subject}: {e.result}, by {e.cause}{f' of {e.who}' if e.who else ''}" for e in entries)

    async def _suspend(self, instance: str) -> None:
        leader, session = self._leading()
        with leader.changing_record() as record:
            await record.suspend(instance, "ann", "fire drill", session)

    async def _resume(self, instance: str) -> str:
        leader, session = self._leading()
        with leader.changing_record() as record:
            return await record.resume(instance, session)

    async def _drain(self, node: str, within: str | None) -> None:
        leader, session = self._leading()
        seconds = None if within is None else float(within)
        await leader.node_wishes.cordon(node, session, who="ann", why="new disk", drain=True, within=seconds)

    async def _cordon(self, node: str) -> None:
        leader, session = self._leading()
        await leader.node_wishes.cordon(node, session, who="ann", why="new disk", drain=False, within=None)

    async def _uncordon(self, node: str) -> None:
        leader, session = self._leading()
        await leader.node_wishes.uncordon(node, session)

    async def _lock(self, node: str) -> None:
        leader, _ = self._leading()
        await leader.node_wishes.lock(node, who="ann", why="not now")

    async def _unlock(self, node: str) -> str:
        leader, session = self._leading()
        return await leader.node_wishes.unlock(node, session)

    def _leading(self) -> tuple[Loop, str]:
        leader = self.world.leader()
        if leader is None or leader.board.term is None:
            raise Waiting("nobody leads", code="NO_LEADER")
        return leader, leader.board.term.session
