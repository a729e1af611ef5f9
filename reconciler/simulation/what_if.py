"""What would happen to a cluster if nodes of it died now: the real controllers and agents on virtual time, told as a story."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from agent.clock import Monotonic
from agent.errors import Missing, TdieError
from agent.keeper.protocol import HostRow
from reconciler.model.desired import DesiredState
from reconciler.model.observed import NodeView, ObservedState, Presence
from reconciler.model.plan import Plan
from reconciler.planning.explain import counted, listed
from reconciler.simulation import virtual
from reconciler.simulation.machine import LIVE
from reconciler.simulation.truth import wanted
from reconciler.simulation.watchers import LooksAway
from reconciler.simulation.world import World

FIRST = 900.0  # seconds that the fleet is given to come to rest before anything dies
QUIET = (
    130.0  # … without any change, after which nothing more will happen: longer than a lease takes to be free (2T + D)
)
LOOK = 0.1


@dataclass(frozen=True, slots=True)
class Told:
    """What happened, and what is left of it."""

    title: str
    lines: tuple[str, ...]
    missing: tuple[str, ...]  # replicas that Git asks for and that do not run in the end, each with the reason

    @property
    def well(self) -> bool:
        return not self.missing

    def text(self) -> str:
        return "\n".join((self.title, *self.lines))


class _Teller(LooksAway):
    """Notes what processes do, from the moment it is told to."""

    def __init__(self) -> None:
        self.world: World | None = None
        self.began = Monotonic(0.0)
        self.changed_at = Monotonic(0.0)
        self.lines: list[str] = []
        self.dead: tuple[str, ...] = ()
        self._presence: dict[str, Presence] = {}
        self._held = ""
        self._rows: dict[tuple[str, str], HostRow] = {}

    def begin(self, world: World) -> None:
        self.world, self.began = world, world.clock.now()

    def say(self, text: str) -> None:
        if self.world is not None:
            now = self.changed_at = self.world.clock.now()
            self.lines.append(f"  {now - self.began:6.1f} s  {text}")

    def look(self) -> None:
        """What the leader says of the nodes that died belongs to the story."""
        leader = self.world.leader() if self.world is not None else None
        if leader is None or leader.board.desired is None:
            return
        cluster = leader.board.desired.cluster
        seen, _ = leader.fleet.snapshot(cluster.nodes, cluster.failover.lost_after)
        for name in self.dead:
            view = seen.nodes.get(name)
            if view is not None and self._presence.get(name) is not view.presence:
                self._presence[name] = view.presence
                if view.presence in (Presence.UNREACHABLE, Presence.LOST):
                    self.say(f"{name} is {view.presence.value}: {view.detail}")
        if self._held != (held := _all_held(leader.board.plan)) and held:
            self.say(held)
        self._held = held

    def row(self, node: str, row: HostRow) -> None:
        self.look()  # it comes before what follows from it
        before, self._rows[node, row.replica] = self._rows.get((node, row.replica)), row
        if self.world is None:
            return
        was = (before.state, before.healthy) if before is not None and before.state in LIVE else ("", False)
        if row.state == "Starting" and not was[0]:
            self.say(f"{row.replica} starts on {node}")
        elif row.state == "Started" and row.healthy and not was[1]:
            self.say(f"{row.replica} is healthy on {node}")
        elif row.state == "Stopped" and row.fenced:
            self.say(f"{row.replica} on {node} was ended: {row.fenced}")
        elif row.state == "Stopped":
            self.say(f"{row.replica} on {node} has stopped")


def lose(desired: DesiredState, nodes: Collection[str], observed: ObservedState | None = None) -> Told:
    """The story of these nodes dying at once, in a fleet that runs what Git asks for, or where it runs it now.

    Raises Missing for a node that is not there, and TdieError when the fleet has nothing to lose yet.
    """
    unknown = sorted(set(nodes) - desired.cluster.nodes.keys())
    if unknown:
        known = ", ".join(sorted(desired.cluster.nodes))
        raise Missing(f"the cluster has no node {listed(unknown)}", code="NO_NODE", hint=f"it has {known}")
    return virtual.run(_lose(desired, tuple(sorted(nodes)), observed))


async def _lose(desired: DesiredState, nodes: tuple[str, ...], observed: ObservedState | None) -> Told:
    world, teller = World(cluster=desired.cluster.name), _Teller()
    world.watcher = teller
    try:
        _people(world, desired, observed)
        world.start_controller("controller")
        world.push(desired)
        await _rest(world, teller, FIRST)
        await _wishes(world, desired, observed)
        return await _told(world, teller, desired, nodes)
    finally:
        await world.close()


def _people(world: World, desired: DesiredState, observed: ObservedState | None) -> None:
    """Machines as they are: those that are gone stay gone, the others remember what they were told last."""
    views = observed.nodes if observed is not None else {}
    for name in sorted(desired.cluster.nodes):
        node, view = world.add_machine(name), views.get(name)
        if view is not None and view.assignment is not None:
            node.ledger.recall(replace(node.ledger.held, epoch=view.assignment.epoch, assignment=view.assignment))
        if view is not None and view.presence is Presence.LOST:
            node.machine.up = False
        else:
            world.start_agent(name)


async def _wishes(world: World, desired: DesiredState, observed: ObservedState | None) -> None:
    """What people want of nodes besides what Git says."""
    views: Mapping[str, NodeView] = observed.nodes if observed is not None else {}
    leader = world.leader()
    for name in desired.cluster.nodes:
        wish = views[name].wish if name in views else None
        if wish is not None and leader is not None and leader.board.term is not None:
            session = leader.board.term.session
            await leader.node_wishes.cordon(name, session, who=wish.who, why=wish.why, drain=wish.drain, within=None)


async def _told(world: World, teller: _Teller, desired: DesiredState, nodes: tuple[str, ...]) -> Told:
    before = dict(_pids(world))
    runs = {name: _there(world, name) for name in nodes}
    lost = sum(map(len, runs.values()))
    title = (
        f"cluster {desired.cluster.name}: {listed(nodes)} {'dies' if len(nodes) == 1 else 'die'} "
        f"({counted(len(desired.cluster.nodes), 'node')}, {counted(len(before), 'replica')}, {lost} of them there)"
    )
    teller.begin(world)
    for name in nodes:
        teller.say(f"{name} dies" + (f", and with it {', '.join(runs[name])}" if runs[name] else ""))
        await world.power_off(name)
    await _watch(world, teller, nodes)
    after = dict(_pids(world))
    kept = sum(1 for key, pid in after.items() if before.get(key) == pid)
    missing = tuple(_missing(world, desired, nodes))
    lines = [*teller.lines, "", *_end(teller, missing)]
    lines.append(f"{counted(kept, 'replica')} elsewhere kept {'its process' if kept == 1 else 'their processes'}")
    lines += ["", *(f"  {name}: {', '.join(_there(world, name)) or 'nothing'}" for name in sorted(world.nodes))]
    return Told(title, tuple(lines), missing)


def _end(teller: _Teller, missing: tuple[str, ...]) -> Iterator[str]:
    if missing:
        yield f"{counted(len(missing), 'replica')} that Git asks for {'does' if len(missing) == 1 else 'do'} not run:"
        yield from (f"  {each}" for each in missing)
    else:
        yield f"after {teller.changed_at - teller.began:.1f} s everything that can run does"


async def _watch(world: World, teller: _Teller, nodes: tuple[str, ...]) -> None:
    """Until nothing has happened for long enough."""
    teller.dead = nodes
    while world.clock.now() - max(teller.changed_at, teller.began) < QUIET:
        await asyncio.sleep(LOOK)
        teller.look()


def _all_held(plan: Plan | None) -> str:
    """What keeps everything waiting, if there is such a thing."""
    holds = plan.holds if plan is not None else ()
    return next((f"MASS_FAILURE_HOLD {hold.detail}" for hold in holds if hold.reason == "MASS_FAILURE_HOLD"), "")


async def _rest(world: World, teller: _Teller, limit: float) -> None:
    """Until a leader carries out this commit and no process has changed for a while."""
    start = world.clock.now()
    while world.clock.now() - start < limit:
        await asyncio.sleep(1.0)
        leader = world.leader()
        plan = leader.board.plan if leader is not None else None
        if plan is not None and leader is not None and leader.board.desired is world.source.sourced.desired:
            running = any(hold.reason in ("IN_FLIGHT", "PACKAGE_FETCHING", "WAITING_LEASE") for hold in plan.holds)
            if not plan.targets and not running and all(hold.until is None for hold in plan.holds):
                return
    raise TdieError(f"the fleet does not come to rest within {limit:g} simulated seconds", code="NOT_AT_REST")


def _pids(world: World) -> Iterator[tuple[tuple[str, str], int | None]]:
    for name, node in world.nodes.items():
        if node.machine.up:
            yield from (((name, row.replica), row.pid) for row in node.machine.rows.values() if row.state in LIVE)


def _there(world: World, name: str) -> list[str]:
    machine = world.nodes[name].machine
    return sorted(row.replica for row in machine.rows.values() if machine.up and row.state in LIVE)


def _missing(world: World, desired: DesiredState, dead: Iterable[str]) -> Iterator[str]:
    """Replicas that nothing healthy runs of, but those of a node that died with it."""
    machines = world.machines.values()
    well = {row.replica for machine in machines if machine.up for row in machine.rows.values() if row.healthy}
    leader = world.leader()
    holds = leader.board.plan.holds if leader is not None and leader.board.plan is not None else ()
    why = {hold.replica: f"{hold.reason.value} {hold.detail}" for hold in holds}
    down = {name for name, machine in world.machines.items() if not machine.up} | set(dead)
    for spec in desired.instances.values():
        for replica in sorted(wanted(desired, spec) - well):
            on = replica.split(".")[1] if spec.per_node is not None else ""
            if on not in down and not spec.suspend:
                yield f"{replica}: {why.get(replica, 'nobody says why')}"
