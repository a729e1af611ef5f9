"""Rounds of trouble for a replica under a strict lease, with an outside witness: every process writes when it lived.

`python -m tests.e2e.rounds --rounds 50` runs them against a real Consul (or `--consul embedded`) and prints what was seen.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from agent.keeper.client import KeeperClient
from tests.agent.keeper.releases import command, release
from tests.conftest import NO_CONSUL, ConsulServer, consul_binary, make_embedded, make_real
from tests.e2e.cable import Cable
from tests.e2e.system import kill, system, until
from tests.e2e.troubles import PROFILES, Expected, far
from tests.e2e.witness import Life, Watched, clock, faults

NODES = ("n1", "n2", "n3")
FIGURES = {
    "ttl": "2s", "renewEvery": "300ms", "httpTimeout": "300ms", "fenceGrace": "400ms", "killSlack": "300ms",
    "lockDelay": "3s",
}  # fmt: skip
T, D = 2.0, 3.0


@dataclass
class Trial(Watched):
    """Three agents, each with a cable to Consul, one controller, and one leased replica."""

    server: ConsulServer = field(kw_only=True)
    seed: int = field(kw_only=True, default=0)
    cables: dict[str, Cable] = field(default_factory=dict)
    agents: dict[str, int] = field(default_factory=dict)  # pid
    release: str = ""  # the interpreter of another release

    def __post_init__(self) -> None:
        super().__post_init__()
        self.random = random.Random(self.seed)

    def begin(self) -> None:
        gone = dict.fromkeys(
            ("watch.yaml", "sleep.yaml", "each.yaml", "packages.yaml", "packages/sleeper/manifest.json")
        )
        self.made.repo.push({**gone, **self.documents()}, "a leased witness")
        for node in NODES:
            self.cables[node] = Cable(self.server.port)
            self.start(node)
        self.made.controller("c1", "--beat-ttl", "1", "--agent-ttl", "2")
        self.runs()

    def start(self, node: str) -> None:
        words = ["--consul", self.cables[node].address, "--beat-ttl", "2"]
        self.agents[node] = self.made.agent(node, *words).pid

    def close(self) -> None:
        for node, pid in self.agents.items():
            os.kill(pid, signal.SIGCONT)
            self.cables[node].join()
        # An agent that is told to end before it is one ends without its keeper.
        self.made.see(lambda s: sum(n["presence"] == "alive" for n in s["nodes"]) == len(NODES), "all agents are there")

    def unplug(self) -> None:
        for cable in self.cables.values():
            cable.close()

    # -- what goes wrong

    def cut_off(self, life: Life) -> None:
        """The node's way to Consul is closed, until another one runs it."""
        self.cables[life.node].cut()
        self.runs(but=life.launch)
        self.cables[life.node].join()

    def agent_stands_still(self, life: Life) -> None:
        """SIGSTOP until its session is over, and then it goes on: its keeper has ended the host by itself."""
        pid = self.agents[life.node]
        os.kill(pid, signal.SIGSTOP)
        until(lambda: self.now() is None, "nothing lives", seen=self.seen, within=T + 2)
        time.sleep(2 * T)  # nobody else may say that it was fenced, so where it runs next is not decided yet
        os.kill(pid, signal.SIGCONT)
        self.runs(but=life.launch)

    def agent_dies(self, life: Life) -> None:
        """It is killed and is away for longer than T."""
        kill(self.agents[life.node])
        self.runs(but=life.launch)
        self.start(life.node)

    def agent_dies_for_a_moment(self, life: Life) -> None:
        """It is killed and started at once: whether it is in time is not certain under these figures."""
        kill(self.agents[life.node])
        self.start(life.node)
        time.sleep(T + D)  # a time in which a second one could come
        self.runs()

    def keeper_dies(self, life: Life) -> None:
        """What it watched over goes with it; the agent makes another one, and the lease is still held."""
        kill(self.made.process("agent.keeper", life.node))
        self.runs(but=life.launch)

    def keeper_is_upgraded(self, life: Life) -> None:
        """It goes on as another release of itself, and back: the same process lives."""
        for _ in range(2):
            away = self.upgrade(life.node)
            after = clock()
            until(lambda after=after: self.runs().last > after, "it lives", seen=self.seen, within=T)  # type: ignore[misc]
            assert self.runs().launch == life.launch, self.seen()
            self.told[-1] += f" (away for {away:.3f} s)"

    def keeper_is_upgraded_while_cut_off(self, life: Life) -> None:
        """The deadline that nobody extends any more is kept by the image that comes."""
        self.cables[life.node].cut()
        self.upgrade(life.node)
        self.runs(but=life.launch)
        self.cables[life.node].join()

    def upgrade(self, node: str) -> float:
        """For how long there was no keeper there, in seconds."""
        if not self.release:
            self.release = release(self.made.folder / "release")
        python = self.random.choice((self.release, sys.executable))

        async def ask() -> float:
            async with KeeperClient(self.made.data / "nodes" / node / "keeper.sock") as keeper:
                return float((await keeper.upgrade(command(python), "of a test"))["took"])

        return asyncio.run(ask())

    def machine_dies(self, life: Life) -> None:
        """Agent and keeper are killed within a moment, and come back once another node runs it."""
        keeper = self.made.process("agent.keeper", life.node)
        kill(self.agents[life.node])
        kill(keeper)
        self.runs(but=life.launch)
        self.start(life.node)

    def session_is_ended(self, life: Life) -> None:
        """Somebody destroys the session."""
        for session in self._consul("session/list"):
            if session["Name"] == f"tdie leases of {life.node}":
                self._consul(f"session/destroy/{session['ID']}", put=True)
        self.runs(but=life.launch)

    def lock_is_deleted(self, life: Life) -> None:
        """Somebody deletes the key."""
        self._consul(f"kv/tdie/{self.made.name}/leases/one.0", delete=True)
        self.runs(but=life.launch)

    def node_is_drained(self, life: Life) -> None:
        """A person wants the node empty: it moves on without anything having to run out."""
        began = clock()
        done = self.made.asked("drain", life.node)
        assert done.returncode == 0, done.stderr
        after = self.runs(but=life.launch)
        gap, whole = after.first - self.ended(life), after.first - began
        self.told[-1] += f" (handed over in {gap:.2f} s, {whole:.2f} s after it was asked)"
        assert self.made.asked("uncordon", life.node).returncode == 0

    def consul_stands_still(self, life: Life) -> None:
        """Nobody reaches Consul for a while: strict stops."""
        for cable in self.cables.values():
            cable.cut()
        until(lambda: self.now() is None, "nothing lives", within=T + 2)
        for cable in self.cables.values():
            cable.join()
        self.runs(but=life.launch)

    def _consul(self, path: str, *, put: bool = False, delete: bool = False) -> list[dict[str, str]]:
        method = "PUT" if put else "DELETE" if delete else "GET"
        request = urllib.request.Request(f"http://{self.server.http}/v1/{path}", method=method)
        with urllib.request.urlopen(request, timeout=5) as answer:
            found = json.loads(answer.read())
        return found if isinstance(found, list) else []

    def round(self, number: int, trouble: Callable[[Life], None]) -> None:
        life = self.runs(within=30.0)
        began = clock()
        self.told.append(f"{number:3} {trouble.__name__} on {life.node}")
        trouble(life)
        self.told[-1] += f": {clock() - began:.1f} s"

    @property
    def troubles(self) -> tuple[Callable[[Life], None], ...]:
        return (
            self.cut_off, self.agent_stands_still, self.keeper_dies, self.session_is_ended, self.agent_dies,
            self.machine_dies, self.lock_is_deleted, self.agent_dies_for_a_moment, self.node_is_drained,
            self.consul_stands_still, self.keeper_is_upgraded, self.keeper_is_upgraded_while_cut_off,
        )  # fmt: skip


@contextmanager
def trial(server: ConsulServer, seed: int = 0) -> Iterator[Trial]:
    """The system runs, and the witness is seen."""
    with system(server.http, NODES, failover={"lostAfter": "1s"}, leases=FIGURES) as made, ExitStack() as ends:
        found = Trial(made, server=server, seed=seed)
        ends.callback(found.unplug)
        ends.callback(made.close)  # the agents give their leases back through the cables
        ends.callback(found.close)
        found.begin()
        yield found


def main() -> int:
    """Run the rounds; 1 when the witness saw what must not be."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=50)
    options.add_argument("--seed", type=int, default=int(time.time()))
    options.add_argument("--consul", choices=["real", "embedded"], default="real")
    options.add_argument("--servers", type=int, choices=[1, 3], default=1, help="3: on machines of their own (as root)")
    options.add_argument("--profile", choices=sorted(PROFILES), default="accelerated", help="with --servers 3")
    options.add_argument("--only", metavar="TROUBLE", nargs="+", help="with --servers 3")
    options.add_argument(
        "--outage", type=float, metavar="SECONDS", help="with --servers 3: then Consul is down for so long"
    )
    given = options.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):  # also in the background: what was built is taken down
        signal.signal(number, lambda *_: sys.exit(130))
    wrong = on_machines(given) if given.servers == 3 else on_this_machine(given)
    print(*wrong, sep="\n")  # noqa: T201
    return 1 if wrong else 0


def on_this_machine(given: argparse.Namespace) -> list[str]:
    """One Consul, and cables to it; what the witness saw that must not be."""
    with tempfile.TemporaryDirectory(prefix="tdie-rounds-") as folder:
        server = {"real": make_real, "embedded": make_embedded}[given.consul](Path(folder))
        server.start()
        try:
            with trial(server, given.seed) as made:
                for number in range(1, given.rounds + 1):
                    trouble = made.random.choice(made.troubles)
                    made.round(number, trouble)
                    print(*made.told[-1:], flush=True)  # noqa: T201
                seen = made.lives()
        finally:
            server.stop()
    wrong = faults(seen)
    print(f"{given.rounds} rounds, seed {given.seed}, T={T:g} D={D:g}: {len(seen)} launches, {len(wrong)} faults")  # noqa: T201
    return wrong


def on_machines(given: argparse.Namespace) -> list[str]:
    """Three Consul servers, controllers and nodes on machines of their own; what the witness saw that must not be."""
    binary = consul_binary()
    assert binary is not None, NO_CONSUL
    profile = PROFILES[given.profile]
    with far(binary, profile, given.seed, agreeing=True) as made:
        troubles = [each for each in made.troubles if not given.only or each[1].__name__ in given.only]
        bag: list[tuple[Expected, Callable[[Life], None]]] = []
        for number in range(1, given.rounds + 1):
            bag = bag or made.random.sample(troubles, len(troubles))  # each comes once before any comes again
            expected, trouble = bag.pop()
            made.round(number, trouble.__name__, expected, trouble)
            print(*made.told[-1:], flush=True)  # noqa: T201
        if given.outage:
            print(made.outage(given.outage), flush=True)  # noqa: T201
        seen, took, wrong = made.lives(), sorted(made.failovers), made.wrong()
        steady = len(made.failsafe.lives())
    for line in made.odd:
        print(f"not as expected: {line}")  # noqa: T201
    head = f"{given.rounds} rounds, seed {given.seed}, T={profile.ttl:g} D={profile.lock_delay:g}"
    launches = f"{len(seen)} launches of strict, {steady} of failsafe"
    kernel = f"word of the kernel missed {made.ends.missed} times" if made.ends else "no word of the kernel"
    print(f"{head}: {launches}, {len(wrong)} faults ({kernel})")  # noqa: T201
    if took:
        late = sum(each > profile.bound for each in took)
        p50, p99 = took[len(took) // 2], took[-1 - len(took) // 100]
        print(f"{len(took)} failovers: p50 {p50:.1f} s, p99 {p99:.1f} s, bound {profile.bound:g} s, later {late}")  # noqa: T201
    return wrong


if __name__ == "__main__":
    sys.exit(main())
