"""Scripts that read like stories, run on a simulated fleet: one command a line, what it answers indented below it.

fleet a b c                        machines with agents, listed in Git
join d                             one more machine with an agent, pushed
label a zone=x · retire a          … of a node in Git; retired, it is not listed there any more
packages log@1.0 · retain 2        what every node has and how many versions it keeps, pushed
prune at most 50%                  sync.maxPrune, pushed
controller one                     a controller starts
commit web@1.0 on 3, at most 1 down      also: `web@1.0 per node 2`, `after db`, `lease strict`, `rebalance gradual`, `drop web`
                                   … and `auto revert`, `canary 1`, `wave 1`, `package web@1.0`, `was old` (movedFrom),
                                   `where zone == 'x'`, `spread zone`, `most 1 a node`, `publisher basic@1.0`,
                                   `port 8080`, `protected`
commit db@1.0; web@1.0, after db   several in one commit
settle                             wait until nothing is left to do
settle within 20s                  … or say what is left
wait 20s
show                               what runs where
processes                          which of them are the same as the last time this was asked
plan                               what the leader would do, and why it waits
crash agent a · start agent a · forget a (its ledger is lost) · disk of a full · disk of a free
power off a · power on a · cut a · cut a from controllers · cut a from consul · heal a
cut a and its consul              … the Consul agent on its machine is cut off from the servers, which go on showing it
consul stops · consul runs         its servers, so that no session ends meanwhile
leases                             what each agent says of the leases of its replicas
consul away · consul back · wipe consul · revoke a · tamper web.0     what happens to Consul, its sessions and its locks
self-heal off · window 0 6 * * * for 3600s     sync.selfHeal and sync.windows (UTC), pushed
apply                              a person approves the plan as it stands
suspend · suspend web · resume · resume web
rollback · rollback to 1 · cancel rollback · history      the number is that of a commit
confirm prune · confirm lost       a person lets go what left Git, or gives nodes up that were lost together
drain a · drain a within 60s · cordon a · uncordon a · lock a · unlock a
crash controller one · kill web.0 · stop web.0 · break web@1.1 · mend web@1.1 · lose web@1.1 · upload web@1.1
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

from agent import keys
from agent.errors import Refused, Waiting
from agent.wire import PackageRef
from reconciler import answers
from reconciler.execution.approvals import promoted
from reconciler.loop import Loop
from reconciler.model.desired import (
    ClusterSpec,
    DesiredState,
    FailoverPolicy,
    InstanceSpec,
    NodeSpec,
    Share,
    SyncPolicy,
)
from reconciler.model.windows import SyncWindow
from reconciler.planning import render
from reconciler.simulation import virtual
from reconciler.simulation.clauses import BadLine, full, instance_of, package_of
from reconciler.simulation.machine import Machine
from reconciler.simulation.world import CLUSTER, World

LIMIT = 600.0  # simulated seconds that `settle` waits
NOTICE = 0.5  # … at least, so that what the line before did has been noticed


def commands(script: str) -> Iterator[tuple[int, str]]:
    """The commands of a script with their line numbers: everything that is not indented, empty or a comment."""
    for number, line in enumerate(script.splitlines(), 1):
        text = line.split("#", 1)[0].rstrip()
        if text and not text.startswith(" "):
            yield number, text


def run(script: str, seed: int = 0) -> str:
    """The script with what each command answered, indented below it. Same seed, same text."""
    return virtual.run(_play(script, seed))


async def _play(script: str, seed: int) -> str:
    stage = Stage(World(seed))
    answers = dict[int, str]()
    try:
        for number, text in commands(script):
            answers[number] = await stage.do(number, text)
    finally:
        await stage.world.close()
    return "\n".join(_with_answers(script, answers)) + "\n"


def _with_answers(script: str, answers: dict[int, str]) -> Iterator[str]:
    for number, line in enumerate(script.splitlines(), 1):
        if line.startswith(" "):
            continue  # an earlier run's answer
        yield line
        for answer in filter(None, answers.get(number, "").splitlines()):
            yield f"    {answer}".rstrip()


class Stage:
    """One run of a script."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._instances: dict[str, InstanceSpec] = {}
        self._commits = 0
        self._labels: dict[str, dict[str, str]] = {}
        self._retired: set[str] = set()
        self._packages: tuple[PackageRef, ...] = ()
        self._retain: int | None = None
        self._sync = SyncPolicy()
        self._seen: dict[tuple[str, str], int | None] = {}

    async def do(self, number: int, text: str) -> str:
        """What the command answers; raises BadLine."""
        for pattern, act in self._verbs():
            if found := re.fullmatch(pattern, text):
                answer = await act(*found.groups())
                return answer or ""
        raise BadLine(number, text)

    def _verbs(self) -> tuple[tuple[str, Callable[..., Awaitable[str | None]]], ...]:
        return (
            (r"fleet (.+)", self._fleet),
            (r"join (\S+)", self._join),
            (r"label (\S+) (\w+)=(\S+)", self._label),
            (r"retire (\S+)", self._retire),
            (r"packages (.+)", self._every_node),
            (r"retain (\d+)", self._keep),
            (r"prune at most (\d+)%", self._prune),
            (r"confirm (prune|lost)", self._confirm),
            (r"controller (\S+)", self._controller),
            (r"self-heal (on|off)", self._self_heal),
            (r"window (.+) for ([\d.]+)s", self._window),
            (r"apply", self._apply),
            (r"rollback(?: to (\d+))?", self._rollback),
            (r"suspend ?(\S*)", self._suspend),
            (r"resume ?(\S*)", self._resume),
            (r"cancel rollback", self._cancel),
            (r"history", self._history),
            (r"drain (\S+)(?: within ([\d.]+)s)?", self._drain),
            (r"cordon (\S+)", self._cordon),
            (r"uncordon (\S+)", self._uncordon),
            (r"lock (\S+)", self._lock),
            (r"unlock (\S+)", self._unlock),
            (r"commit drop (.+)", self._drop),
            (r"commit (.+)", self._commit),
            (r"settle(?: within ([\d.]+)s)?", self._settle),
            (r"wait ([\d.]+)s", self._wait),
            (r"show", self._show),
            (r"processes", self._processes),
            (r"plan", self._plan),
            (r"crash agent (\S+)", self.world.crash_agent),
            (r"disk of (\S+) (full|free)", self._disk),
            (r"start agent (\S+)", self._start_agent),
            (r"forget (\S+)", self._forget),
            (r"power off (\S+)", self.world.power_off),
            (r"power on (\S+)", self._power_on),
            (r"cut (\S+) from controllers", self._cut_controllers),
            (r"cut (\S+) from consul", self._cut_consul),
            (r"cut (\S+) and its consul", self._cut_its_consul),
            (r"cut (\S+)", self._cut),
            (r"wipe consul", self._wipe),
            (r"revoke (\S+)", self._revoke),
            (r"tamper (\S+)", self._tamper),
            (r"heal (\S+)", self._heal),
            (r"crash controller (\S+)", self.world.crash_controller),
            (r"consul (away|back)", self._consul),
            (r"consul (stops|runs)", self._consul_servers),
            (r"leases", self._leases),
            (r"kill (\S+)", self._kill),
            (r"stop (\S+)", self._stop),
            (r"break (\S+)", self._break),
            (r"mend (\S+)", self._mend),
            (r"lose (\S+)", self._lose),
            (r"upload (\S+)", self._upload),
        )

    # ------------------------------------------------------------------------------------------- what people do

    async def _fleet(self, names: str) -> None:
        for name in names.split():
            self.world.add_machine(name)
            self.world.start_agent(name)

    async def _join(self, name: str) -> None:
        await self._fleet(name)
        self._push()

    async def _controller(self, name: str) -> None:
        self.world.start_controller(name)

    async def _label(self, node: str, name: str, value: str) -> None:
        self._labels.setdefault(node, {})[name] = value
        self._push()

    async def _retire(self, node: str) -> None:
        self._retired.add(node)
        self._push()

    async def _every_node(self, names: str) -> None:
        self._packages = tuple(map(package_of, () if names == "none" else names.split()))
        self._push()

    async def _keep(self, versions: str) -> None:
        self._retain = int(versions)
        self._push()

    async def _prune(self, percent: str) -> None:
        self._sync = replace(self._sync, max_prune=Share(int(percent), percent=True))
        self._push()

    async def _commit(self, texts: str) -> None:
        for text in texts.split(";"):
            spec = instance_of(text.strip())
            self._instances[spec.name] = spec
            if spec.moved_from is not None:
                self._instances.pop(spec.moved_from, None)
        self._push()

    async def _self_heal(self, word: str) -> None:
        self._sync = replace(self._sync, self_heal=word == "on")
        self._push()

    async def _window(self, schedule: str, seconds: str) -> None:
        self._sync = replace(self._sync, windows=(SyncWindow(schedule, float(seconds)),))
        self._push()

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

    async def _suspend(self, instance: str) -> None:
        leader, session = self._leading()
        with leader.changing_record() as record:
            await record.suspend(instance, "ann", "fire drill", session)

    async def _resume(self, instance: str) -> str:
        leader, session = self._leading()
        with leader.changing_record() as record:
            return await record.resume(instance, session)

    async def _cancel(self) -> None:
        leader, session = self._leading()
        await leader.rollbacks.cancel(session)
        leader.look()

    async def _history(self) -> str:
        leader, _ = self._leading()
        entries = reversed(await leader.history.load())
        return "\n".join(f"{e.subject}: {e.result}, by {e.cause}{f' of {e.who}' if e.who else ''}" for e in entries)

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

    async def _drop(self, names: str) -> None:
        for name in names.split():
            del self._instances[name]
        self._push()

    def _push(self) -> None:
        self._commits += 1
        listed = sorted(self.world.nodes.keys() - self._retired)
        cluster = ClusterSpec(
            CLUSTER,
            {name: NodeSpec(name, dict(self._labels.get(name, {}))) for name in listed},
            self._packages,
            sync=self._sync,
            failover=FailoverPolicy(lost_after=15.0),
            retain_versions=self._retain,
        )
        instances = {name: self._instances[name] for name in sorted(self._instances)}
        self.world.push(DesiredState(f"{self._commits:040x}", cluster, instances, subject=f"commit {self._commits}"))

    async def _settle(self, within: str | None) -> str:
        limit = float(within) if within else LIMIT
        await asyncio.sleep(NOTICE)
        try:
            await self.world.until(self._settled, limit)
        except TimeoutError:
            return f"not settled after {limit:g}s\n{await self._plan()}"
        return ""

    def _settled(self) -> bool:
        leader = self.world.leader()
        if leader is None or leader.board.source is None:
            return False
        if leader.board.source.rollback is not None:
            return answers.settled(leader.board)
        return leader.board.desired is self.world.source.sourced.desired and answers.converged(leader.board)

    async def _wait(self, seconds: str) -> None:
        start = self.world.clock.now()
        await self.world.until(lambda: self.world.clock.now() - start >= float(seconds), float(seconds) + 1)

    async def _start_agent(self, name: str) -> None:
        self.world.start_agent(name)

    async def _forget(self, name: str) -> None:
        """The agent starts again and finds that its ledger makes no sense."""
        await self.world.crash_agent(name)
        self.world.lose_ledger(name)
        self.world.start_agent(name)

    async def _power_on(self, name: str) -> None:
        self.world.power_on(name)

    async def _cut(self, name: str) -> None:
        self.world.cut(name, consul=True)

    async def _cut_controllers(self, name: str) -> None:
        self.world.cut(name, consul=False)

    async def _cut_consul(self, name: str) -> None:
        self.world.cut_consul(name)

    async def _cut_its_consul(self, name: str) -> None:
        self.world.cut_consul(name, its_own=True)

    async def _wipe(self) -> None:
        self.world.servers.wipe()

    async def _revoke(self, name: str) -> None:
        """Somebody ends the session under which a node holds its leases."""
        for session in list(self.world.store.sessions.values()):
            if session.name == f"tdie leases of {name}":
                self.world.store.destroy_session(session.id)

    async def _tamper(self, replica: str) -> None:
        """Somebody deletes the lock of a replica."""
        self.world.store.delete(keys.lease(CLUSTER, replica))

    async def _heal(self, name: str) -> None:
        self.world.heal(name)

    async def _consul(self, word: str) -> None:
        self.world.servers.vanish(word == "away")

    async def _disk(self, name: str, word: str) -> None:
        node = self.world.nodes[name]
        node.machine.disk_full = node.ledger.full = word == "full"

    async def _kill(self, replica: str) -> None:
        self._machine_of(replica).kill_host(replica)

    async def _stop(self, replica: str) -> None:
        self._machine_of(replica).stop_by_hand(replica)

    async def _break(self, package: str) -> None:
        for node in self.world.nodes.values():
            node.machine.broken.add(full(package))

    async def _mend(self, package: str) -> None:
        for node in self.world.nodes.values():
            node.machine.mend(full(package))

    async def _lose(self, package: str) -> None:
        self.world.missing.add(full(package))

    async def _upload(self, package: str) -> None:
        self.world.missing.discard(full(package))

    def _machine_of(self, replica: str) -> Machine:
        return next(node.machine for node in self.world.nodes.values() if replica in node.machine.rows)

    # ------------------------------------------------------------------------------------------- what people see

    async def _consul_servers(self, word: str) -> None:
        self.world.servers.stop(word == "stops")

    async def _leases(self) -> str:
        """One line for each replica that an agent reports with a lease."""
        agents = [(name, node.agent) for name, node in sorted(self.world.nodes.items()) if node.agent is not None]
        said = [
            f"{name}: {row.replica} {row.lease}"
            for name, agent in agents
            for row in sorted(agent.book.whole().replicas, key=lambda row: row.replica)
            if row.lease is not None
        ]
        return "\n".join(said) or "none"

    async def _show(self) -> str:
        """What really runs, as an omniscient observer sees it: one line a machine."""
        lines = []
        for name, node in sorted(self.world.nodes.items()):
            rows = sorted(node.machine.rows.values(), key=lambda row: row.replica)
            words = [
                f"{row.replica} {row.order.component.name}@{row.order.component.version}"
                + ("" if row.healthy else f" {row.state}, not healthy")
                + (f" restarts={row.restarts}" if row.restarts else "")
                for row in rows
            ]
            lines.append(f"{name}: {'; '.join(words) or ('nothing' if node.machine.up else 'off')}")
        return "\n".join(lines)

    async def _processes(self) -> str:
        """What was started and what is gone since this was asked last; whatever is neither kept its process."""
        now: dict[tuple[str, str], int | None] = {
            (row.replica, name): row.pid
            for name, node in self.world.nodes.items()
            for row in node.machine.rows.values()
            if row.pid is not None
        }
        before, self._seen = self._seen, now
        kept = [replica for (replica, node), pid in sorted(now.items()) if before.get((replica, node)) == pid]
        new = [
            f"{replica} on {node}" for (replica, node), pid in sorted(now.items()) if before.get((replica, node)) != pid
        ]
        gone = [f"{replica} on {node}" for (replica, node) in sorted(before) if (replica, node) not in now]
        words = (("kept", kept), ("new", new), ("gone", gone))
        return "\n".join(f"{word} {len(found)}: {', '.join(found)}" for word, found in words if found)

    async def _plan(self) -> str:
        leader = self.world.leader()
        if leader is None or leader.board.plan is None:
            return "nobody leads"
        return render.text(leader.board.plan)
