"""What can go wrong between machines, and what a leased replica must then do; on the rig of several machines."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.e2e.rig import CONTROLLERS, SERVERS, Rig, rig, well
from tests.e2e.system import NODES, kill, until
from tests.e2e.witness import Beats, Ends, Life, Watched, clock, faults, witness

Expected = Literal["moves", "stays", "either"]
# What runs on the node without a lease starts elsewhere, too.
LOSE_THE_NODE = (
    "machine_dies", "agent_dies", "both_machines_die", "node_is_alone", "node_is_drained", "snapshot_is_restored",
    "machine_stands_still",
)  # fmt: skip


@dataclass(frozen=True)
class Profile:
    """Figures of leases, and how quickly everybody else notices that somebody is gone."""

    ttl: float
    lock_delay: float
    leases: Mapping[str, str]
    lost_after: str
    hcl: str = ""
    agent: Sequence[str] = ()
    controller: Sequence[str] = ()

    @property
    def bound(self) -> float:
        """How long a failover may take."""
        return 2 * self.ttl + self.lock_delay + 10


PROFILES = {
    "accelerated": Profile(
        2.0, 3.0,
        {"ttl": "2s", "renewEvery": "300ms", "httpTimeout": "300ms", "fenceGrace": "400ms", "killSlack": "300ms",
         "lockDelay": "3s"},
        "1s",
        'gossip_lan { gossip_interval = "100ms" probe_interval = "300ms" probe_timeout = "200ms" suspicion_mult = 2 } ',
        ("--beat-ttl", "2"), ("--beat-ttl", "1", "--agent-ttl", "2"),
    ),
    "fast": Profile(15.0, 20.0, {"profile": "fast"}, "15s"),
    "default": Profile(30.0, 40.0, {"profile": "default"}, "15s"),
}  # fmt: skip


@dataclass
class Far(Watched):
    """Three nodes, two controllers and three Consul servers, each on a machine of its own.

    One replica has a strict lease; if asked for, another one has a failsafe lease, which is watched as well.
    """

    rig: Rig = field(kw_only=True)
    agreeing: bool = field(kw_only=True, default=False)  # there is a failsafe replica, too
    profile: Profile = field(kw_only=True)
    random: random.Random = field(kw_only=True)
    failovers: list[float] = field(default_factory=list)  # seconds
    excused: set[str] = field(default_factory=set)  # launches of machines that stood still as a whole
    odd: list[str] = field(default_factory=list)  # what was not expected, though nothing ran twice

    def __post_init__(self) -> None:
        super().__post_init__()
        self.failsafe = Beats(self.made.folder / "failsafe.txt")

    def documents(self) -> dict[str, str]:
        steady = witness("steady", "two", "failsafe", self.failsafe.file) if self.agreeing else {}
        return super().documents() | steady

    def wrong(self) -> list[str]:
        """What must not be of both."""
        ends = self.ends.at if self.ends else None
        return faults(self.lives(), self.excused) + faults(self.failsafe.lives(ends), self.excused)

    def begin(self) -> None:
        gone = dict.fromkeys(("watch.yaml", "each.yaml"))
        self.made.repo.push({**gone, **self.documents()}, "a leased witness")
        self.rig.begin()
        self.runs()
        until(self.well, "everything runs", seen=self.seen, within=60)

    def presence(self, node: str) -> str:
        """What the leader thinks of the node."""
        status = self.made.status()
        nodes = status["nodes"] if status["leading"] else ()
        return next((str(each["presence"]) for each in nodes if each["name"] == node), "")

    def well(self) -> bool:
        """Whether somebody leads, and says that every node is alive and everything runs as it should."""
        return well(self.made.status())

    # -- Consul away for long

    def outage(self, seconds: float) -> str:
        """All servers are down for so long: nothing without a lease is touched, nor what all nodes agree on; a crash is healed
        on the spot. Nodes have 1.3 s to agree under accelerated figures, in which a busy machine may not get to it: then it ends.
        """
        life, before, began = self.runs(), self.rig.plain(), clock()
        short = self.profile.ttl < 10
        if self.agreeing:
            until(lambda: self._eligible() == set(NODES), "all nodes are written down to be asked", seen=self.seen)
        steady = self.made.hosts("two.0")
        assert bool(steady) is self.agreeing, "the failsafe replica runs if there is one"
        victim, (_, old, _) = sorted(before.items())[0]
        self.rig.consuls.kill(*SERVERS)
        unavailable = "CONSUL_UNAVAILABLE"
        until(lambda: all(unavailable in self.rig.problems(n) for n in NODES), "all nodes say so", seen=self.rig.logs)
        said = clock() - began
        assert unavailable in self.made.asked("status").stderr
        kill(old)
        until(
            lambda: set(self.made.hosts(victim)) - {old}, f"{victim} is started again by its node", seen=self.rig.logs
        )
        again = clock() - began - said
        while clock() < began + seconds:
            self.same(before, but=victim)
            assert short or self.made.hosts("two.0") == steady, self.seen()
            time.sleep(0.5)
        assert self.now() is None, "strict does not outlive Consul"
        self.rig.consuls.start(*SERVERS)
        back = clock()
        self.rig.led()
        leads = clock() - back
        until(self.well, "all is well again", seen=self.seen, within=120)
        after = self.rig.plain()
        touched = {one: (row, after.get(one)) for one, row in before.items() if one != victim and after.get(one) != row}
        assert touched == {}, f"without a lease, and touched all the same: {touched}\n{self.seen()}"
        assert after.keys() == before.keys(), f"{sorted(before)}, then {sorted(after)}"
        assert after[victim][2] == before[victim][2] + 1, (
            f"{victim}: {before[victim]}, then {after[victim]}\n{self.seen()}"
        )
        assert self.rig.registered() >= {*before, "one.0"}, "everything is in the catalog again"
        assert self.runs(but=life.launch).token > life.token
        went_on = self.made.hosts("two.0") == steady
        assert short or went_on, "failsafe went on through all of it"
        return (
            f"Consul down for {back - began:.0f} s: CONSUL_UNAVAILABLE on all nodes after {said:.1f} s, a crashed host "
            f"started again after {again:.1f} s, {len(before) - 1} others untouched, failsafe {'went on' if went_on else 'ended'}; "
            f"back: led after {leads:.1f} s, all well after {clock() - back:.1f} s"
        )

    def _eligible(self) -> set[str]:
        return set(json.loads(self.made.key("leases/two.0") or "{}").get("eligible", {}))

    def same(self, rows: Mapping[str, tuple[str, int, int]], *, but: str = "") -> None:
        """Each replica is exactly the process it was, seen without asking anybody."""
        for replica, (_, pid, _) in rows.items():
            assert replica == but or self.made.hosts(replica) == [pid], f"{replica} is not as it was\n{self.rig.logs()}"

    # -- a round

    def round(self, number: int, name: str, expected: Expected, trouble: Callable[[Life], None]) -> None:
        """One trouble; afterwards everything is as good as before, and what it led to is told."""
        life, plain, began = self.runs(), self.rig.plain(), clock()
        self.since = began
        self.told.append(f"{number:3} {name} on {life.node}")
        trouble(life)
        self.rig.heal()
        until(self.well, f"all is well after {name}", seen=self.seen, within=120)
        until(self.rig.consuls.all_vote, "all Consul servers vote", seen=self.rig.logs)
        self.runs()
        self._tell(name, expected, life, plain)
        self.told[-1] += f"; {clock() - began:.1f} s in all"

    def _tell(self, name: str, expected: Expected, life: Life, plain: Mapping[str, tuple[str, int, int]]) -> None:
        seen = self.lives()
        after = [one for one in seen if one.first > self.since]
        if not after:
            self.told[-1] += ": stays"
            if expected == "moves":
                self.odd.append(f"{self.told[-1]}, though it must not")
        else:
            before = seen[seen.index(after[0]) - 1]
            taken, gap = after[0].first - self.since, after[0].first - before.last
            self.told[-1] += f": on {after[0].node} after {taken:.1f} s, {gap:.2f} s after the end of the other"
            self.failovers.append(taken)
            if expected == "stays":
                self.odd.append(f"{self.told[-1]}, though it need not move")
        if len(after) > 1:
            self.told[-1] += f", {len(after)} launches"
        spared = {one: row for one, row in plain.items() if row[0] != life.node or name not in LOSE_THE_NODE}
        now = self.rig.plain()
        if touched := {one: f"{row}, now {now.get(one)}" for one, row in spared.items() if now.get(one) != row}:
            self.odd.append(f"{self.told[-1]}: without a lease, but not as before: {dict(sorted(touched.items()))}")

    # -- the controllers

    def leader_dies(self, life: Life) -> None:
        """kill -9 of the controller that leads; the other one takes over."""
        self._leads_on(lambda old: self.rig.kill(old))

    def leader_s_machine_dies(self, life: Life) -> None:
        """… with its machine, so that nobody takes leave of anybody."""
        leader = self._leads_on(self.rig.fail)
        self.rig.boot(leader)

    def leader_stands_still(self, life: Life) -> None:
        """SIGSTOP until the other one leads; then it goes on in the middle of what it did."""
        self._leads_on(lambda old: self.rig.stand_still(self.rig.controllers[old]))
        self.rig.go_on()
        time.sleep(self.profile.ttl)

    def leader_is_cut_from_consul(self, life: Life) -> None:
        """It reaches the nodes, but none of Consul's servers."""
        self._leads_on(lambda old: self.rig.network.cut([old], SERVERS))

    def controllers_do_not_reach_the_node(self, life: Life) -> None:
        """Both of them; the node and Consul do reach each other."""
        self.rig.network.cut(CONTROLLERS, [life.node])
        unreachable = f"{life.node} is unreachable"
        until(lambda: self.presence(life.node) == "unreachable", unreachable, seen=self.seen, within=30)
        time.sleep(self.profile.ttl + self.profile.lock_delay)  # in which it could be taken for lost

    def _leads_on(self, trouble: Callable[[str], None]) -> str:
        old, began = self.rig.led(), clock()
        trouble(old)
        self.rig.led(but=old)
        self.told[-1] += f" (another leads after {clock() - began:.1f} s)"
        return old

    # -- Consul

    def consul_s_leader_dies(self, life: Life) -> None:
        """Its servers elect another one."""
        old, began = self.rig.consuls.leader(), clock()
        self.rig.consuls.kill(old)
        until(lambda: self.rig.consuls.leader(but=(old,)), "an election", seen=self.rig.logs)
        self.told[-1] += f" (elected after {clock() - began:.1f} s)"
        time.sleep(self.profile.ttl)

    def consul_s_leader_is_alone(self, life: Life) -> None:
        """It is cut from the other servers, but not from anybody else."""
        old = self.rig.consuls.leader()
        others = [server for server in SERVERS if server != old]
        self.rig.network.cut([old], others)
        until(lambda: self.rig.consuls.leader(but=(old,)), "an election", seen=self.rig.logs)
        time.sleep(self.profile.ttl + self.profile.lock_delay)

    def consul_is_down(self, life: Life) -> None:
        """All three servers are killed, and come back."""
        self.rig.consuls.kill(*SERVERS)
        until(lambda: self.now() is None, "nothing lives", seen=self.seen, within=self.profile.ttl + 5)
        time.sleep(self.random.uniform(0, 2 * self.profile.ttl))
        self.since = clock()
        self.rig.consuls.start(*SERVERS)
        self.runs(but=life.launch)

    def consul_is_wiped(self, life: Life) -> None:
        """All three servers are killed and have lost their data when they come back: who holds a lease takes it again."""
        epoch = int(self.made.key("epoch"))
        self.rig.consuls.kill(*SERVERS)
        self.rig.consuls.wipe(*SERVERS)
        self.rig.consuls.start(*SERVERS)
        until(lambda: self.rig.consuls.leader(), "Consul has a leader", seen=self.rig.logs)
        self.told[-1] += f" (back after {clock() - self.since:.1f} s)"
        until(lambda: int(self.made.key("epoch") or 0) > epoch, "a higher epoch", seen=self.seen)
        lost = "CONSUL_EPOCH_LOST"
        until(lambda: lost in self.rig.problems(life.node), "it is said", seen=self.seen)
        until(lambda: lost not in self.rig.problems(life.node), "it is healed", seen=self.seen, within=150)
        self.runs()

    def its_consul_client_dies(self, life: Life) -> None:
        """kill -9 of the Consul on its machine, which is started again."""
        self.rig.consuls.kill(life.node)
        time.sleep(self.random.uniform(0, self.profile.ttl / 3))
        self.rig.consuls.start(life.node)
        time.sleep(self.profile.ttl + self.profile.lock_delay)

    def its_consul_client_leaves(self, life: Life) -> None:
        """It is told to end and takes leave: the node is gone from the catalog with its sessions."""
        self.rig.consuls.leave(life.node)
        self.runs(but=life.launch)

    def session_is_ended(self, life: Life) -> None:
        """Somebody destroys the session: the lock has no holder, and nobody gets it for the time of the lock-delay."""
        made = self._ask(self._lock)[0]["CreateIndex"]
        for session in self._ask("session/list"):
            if session["Name"] == f"tdie leases of {life.node}":
                self._ask(f"session/destroy/{session['ID']}", method="PUT")
        self._fenced(life, "LEASE_REVOKED")
        until(lambda: "WAITING_LOCK_DELAY" in self._row("one.0")["lease"]["text"], "it is said", seen=self.seen)
        self.runs(but=life.launch)
        assert self._ask(self._lock)[0]["CreateIndex"] == made, "the key is never deleted"

    def lock_is_deleted(self, life: Life) -> None:
        self._ask(self._lock, method="DELETE")
        self._fenced(life, "LOCK_TAMPERED")
        self.runs(but=life.launch)

    def lock_is_written_over(self, life: Life) -> None:
        """Somebody puts something else there."""
        self._ask(self._lock, method="PUT", body=b"mine")
        self._fenced(life, "LOCK_TAMPERED")
        self.runs(but=life.launch)

    def serf_health_flaps(self, life: Life) -> None:
        """Consul takes the machine for gone, wrongly and for a while."""
        for status in ("critical", "passing", "critical", "passing"):
            check = {"Node": life.node, "CheckID": "serfHealth", "Name": "Serf Health Status", "Status": status}
            body = {"Node": life.node, "Address": self.rig.network.addresses[life.node], "Check": check}
            self._ask("catalog/register", method="PUT", body=json.dumps(body).encode())
            time.sleep(self.profile.ttl / 2)

    def node_is_deregistered(self, life: Life) -> None:
        """Somebody takes the machine out of the catalog, with all its sessions."""
        body = json.dumps({"Node": life.node}).encode()
        self._ask("catalog/deregister", method="PUT", body=body)
        self._fenced(life, "LEASE_REVOKED")
        self.runs(but=life.launch)

    def snapshot_is_restored(self, life: Life) -> None:
        """Consul is as it was before the replica moved here: it says that another session holds the lock."""
        saved = self._raw("snapshot")
        done = self.made.asked("drain", life.node)
        assert done.returncode == 0, done.stderr
        moved = self.runs(but=life.launch)
        assert self.made.asked("uncordon", life.node).returncode == 0
        self.since = clock()
        self._raw("snapshot", body=saved)
        time.sleep(2 * self.profile.ttl + self.profile.lock_delay)
        assert moved.launch != life.launch

    @property
    def _lock(self) -> str:
        return f"kv/tdie/{self.made.name}/leases/one.0"

    def _row(self, replica: str) -> dict[str, Any]:
        """What the status says of it."""
        for row in self.made.status()["instances"]:
            for one in row["replicas"]:
                if one["name"] == replica:
                    return dict(one)
        return {"lease": {"text": ""}}

    def _fenced(self, life: Life, code: str) -> None:
        """The node says that it has ended the replica, and why."""
        until(lambda: code in self.rig.problems(life.node).get("FENCED", ""), f"{code} is said", seen=self.seen)

    def _raw(self, path: str, body: bytes | None = None) -> bytes:
        """Bytes to or from the first server that answers."""
        for server in SERVERS:
            try:
                return self.rig.consuls.raw(server, path, method="PUT" if body else "GET", body=body, within=20)
            except OSError:
                continue
        raise AssertionError(f"no server answers to {path}")

    def _ask(self, path: str, **more: Any) -> Any:
        """At any server that answers."""
        for server in SERVERS:
            try:
                return self.rig.consuls.ask(server, path, **more)
            except OSError:
                continue
        raise AssertionError(f"no server answers to {path}")

    # -- the node

    def node_is_cut_from_consul(self, life: Life) -> None:
        """Everything between the node and Consul's servers is lost; controllers reach it."""
        self.rig.network.cut([life.node], SERVERS)
        self.runs(but=life.launch)

    def consul_does_not_hear_the_node(self, life: Life) -> None:
        self.rig.network.cut([life.node], SERVERS, back=False)
        self.runs(but=life.launch)

    def the_node_does_not_hear_consul(self, life: Life) -> None:
        self.rig.network.cut(SERVERS, [life.node], back=False)
        self.runs(but=life.launch)

    def node_is_alone(self, life: Life) -> None:
        """Nobody reaches it."""
        self.rig.network.cut([life.node], self.rig.network.addresses)
        self.runs(but=life.launch, within=120)

    def link_flaps(self, life: Life) -> None:
        """The way to Consul comes and goes."""
        until_then = clock() + 4 * self.profile.ttl
        while clock() < until_then:
            self.rig.network.cut([life.node], SERVERS, back=self.random.random() < 0.5)
            time.sleep(self.random.uniform(0.1, self.profile.ttl))
            self.rig.network.join([life.node], SERVERS)
            time.sleep(self.random.uniform(0.1, self.profile.ttl / 2))

    def agent_stands_still(self, life: Life) -> None:
        """SIGSTOP until its session is over, and then it goes on: its keeper has ended the host by itself."""
        self.rig.stand_still(self.rig.agents[life.node])
        until(lambda: self.now() is None, "nothing lives", seen=self.seen, within=self.profile.ttl + 5)
        time.sleep(2 * self.profile.ttl)
        self.rig.go_on()
        self.runs(but=life.launch)

    def agent_dies(self, life: Life) -> None:
        """It is away until another one runs."""
        self.rig.kill(life.node)
        self.runs(but=life.launch)

    def agent_dies_for_a_moment(self, life: Life) -> None:
        """It is started at once: whether it is in time is not certain under short figures."""
        self.rig.kill(life.node)
        self.rig.start(life.node)
        time.sleep(self.profile.ttl + self.profile.lock_delay)  # a time in which a second one could come

    def keeper_dies(self, life: Life) -> None:
        """What it watched over goes with it; the agent makes another one, and the lease is still held."""
        self.rig.kill_keeper(life.node)
        self.runs(but=life.launch)

    def machine_dies(self, life: Life) -> None:
        """Agent, keeper, hosts and Consul client end within a moment, and nobody hears of it."""
        self.rig.fail(life.node)
        self.runs(but=life.launch, within=120)
        self.rig.boot(life.node)

    def machine_stands_still(self, life: Life) -> None:
        """Everything on the machine, also what would end it in time; it goes on when another one runs, and that is an exception.

        Nothing on such a machine can know of it earlier: what matters is that whoever goes on is ended at once (FAULTS row 20).
        """
        pids, steady = self.rig.network.pids(life.node), self.failsafe.now()
        for pid in pids:
            self.rig.stand_still(pid)
        self.runs(but=life.launch, within=120)
        self.excused |= {one.launch for one in (life, steady) if one and one.node == life.node}
        again = clock()
        self.rig.go_on()
        until(lambda: not set(pids) & set(self.made.hosts("one.0")), "it is ended", seen=self.seen, within=5)
        self.told[-1] += f" (went on for {max(0.0, self.ended(life) - again):.2f} s)"

    def node_is_drained(self, life: Life) -> None:
        """A person wants the node empty: it moves on without anything having to run out."""
        done = self.made.asked("drain", life.node)
        assert done.returncode == 0, done.stderr
        self.runs(but=life.launch)
        assert self.made.asked("uncordon", life.node).returncode == 0

    @property
    def troubles(self) -> tuple[tuple[Expected, Callable[[Life], None]], ...]:
        """Everything that may go wrong, and what is expected of the leased replica. Short figures expire in an election."""
        short: Expected = "either" if self.profile.ttl < 10 else "stays"
        return (
            ("stays", self.leader_dies), ("stays", self.leader_s_machine_dies), ("stays", self.leader_stands_still),
            ("stays", self.leader_is_cut_from_consul), ("stays", self.controllers_do_not_reach_the_node),
            (short, self.consul_s_leader_dies), ("either", self.consul_s_leader_is_alone), ("moves", self.consul_is_down),
            ("stays" if self.profile.ttl > 20 else "either", self.consul_is_wiped),
            (short, self.its_consul_client_dies), ("moves", self.its_consul_client_leaves),
            ("moves", self.session_is_ended), ("moves", self.lock_is_deleted), ("moves", self.lock_is_written_over),
            ("stays", self.serf_health_flaps), ("moves", self.node_is_deregistered), ("moves", self.snapshot_is_restored),
            ("moves", self.node_is_cut_from_consul), ("moves", self.consul_does_not_hear_the_node),
            ("moves", self.the_node_does_not_hear_consul), ("moves", self.node_is_alone), ("either", self.link_flaps),
            ("moves", self.agent_stands_still), ("moves", self.agent_dies), (short, self.agent_dies_for_a_moment),
            ("moves", self.keeper_dies), ("moves", self.machine_dies), ("moves", self.node_is_drained),
            ("moves", self.machine_stands_still),
        )  # fmt: skip


@contextmanager
def far(binary: Path, profile: Profile, seed: int = 0, *, agreeing: bool = False) -> Iterator[Far]:
    """The installation runs, and the witness is seen."""
    ends = Ends.listen()  # before this thread goes elsewhere: the kernel tells of them in the first network only
    try:
        with rig(
            binary, hcl=profile.hcl, agent_words=profile.agent, controller_words=profile.controller,
            failover={"lostAfter": profile.lost_after}, leases=dict(profile.leases),
        ) as made:  # fmt: skip
            found = Far(made.made, ends=ends, rig=made, agreeing=agreeing, profile=profile, random=random.Random(seed))
            found.begin()
            yield found
    finally:
        if ends is not None:
            ends.close()
