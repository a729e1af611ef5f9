"""Rounds of trouble for a replica under a strict lease, with an outside witness: every process writes when it lived.

`python -m tests.e2e.rounds --rounds 50` runs them against a real Consul (or `--consul embedded`) and prints what was seen.
"""

from __future__ import annotations

import argparse
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
from itertools import pairwise
from pathlib import Path

from tests.conftest import ConsulServer, make_embedded, make_real
from tests.e2e.cable import Cable
from tests.e2e.system import System, instance, kill, package, system, until

NODES = ("n1", "n2", "n3")
FIGURES = {
    "ttl": "2s", "renewEvery": "300ms", "httpTimeout": "300ms", "fenceGrace": "400ms", "killSlack": "300ms",
    "lockDelay": "3s",
}  # fmt: skip
T, D = 2.0, 3.0
BEAT = 0.02

WITNESS = """
import os, sys, time
def beat(role):
    me = f"{os.environ['TDIE_HOST']} {role} {os.getpid()} {os.environ['TDIE_NODE']} {os.environ['TDIE_LEASE']}"
    out = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    while True:
        os.write(out, f"{time.clock_gettime(time.CLOCK_BOOTTIME):.6f} {me}\\n".encode())
        time.sleep(BEAT)
if os.fork() == 0:
    os.setsid()
    import signal
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    beat("child")
beat("main")
"""


@dataclass(frozen=True, slots=True)
class Life:
    """One launch of the replica, with all processes of it, as the witness saw it."""

    launch: str
    node: str
    token: tuple[int, int]
    first: float
    last: float


def lives(file: Path) -> list[Life]:
    """Every launch, in the order in which they began."""
    found: dict[str, Life] = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        at, launch, _role, _pid, node, token = line.split()
        epoch, _, index = token.partition(".")
        now, before = float(at), found.get(launch)
        found[launch] = Life(
            launch, node, (int(epoch), int(index)),
            min(now, before.first) if before else now, max(now, before.last) if before else now,
        )  # fmt: skip
    return sorted(found.values(), key=lambda life: life.first)


def faults(seen: list[Life]) -> list[str]:
    """What must not be: two at once, or a later one with a lower token."""
    wrong = []
    for before, after in pairwise(seen):
        if after.first <= before.last:
            wrong.append(f"overlap of {before.last - after.first:.3f} s: {before} and {after}")
        if after.token < before.token:
            wrong.append(f"token went down: {before} and {after}")
    return wrong


@dataclass
class Trial:
    """Three agents, each with a cable to Consul, one controller, and one leased replica."""

    made: System
    server: ConsulServer
    seed: int = 0
    cables: dict[str, Cable] = field(default_factory=dict)
    agents: dict[str, int] = field(default_factory=dict)  # pid
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    @property
    def file(self) -> Path:
        return self.made.folder / "witness.txt"

    def begin(self) -> None:
        manifest = {
            "name": "witness", "version": "1.0.0", "runtime": "exec",
            "command": [sys.executable, "-c", WITNESS.replace("BEAT", str(BEAT)), str(self.file)],
        }  # fmt: skip
        gone = dict.fromkeys(
            ("watch.yaml", "sleep.yaml", "each.yaml", "packages.yaml", "packages/sleeper/manifest.json")
        )
        self.made.repo.push(
            {
                **gone,
                "packages/witness/manifest.json": json.dumps(manifest),
                "witness.yaml": "---\n".join(
                    (
                        package("witness", path="packages/witness"),
                        instance("one", package="witness@1.0.0", replicas=1, lease="strict"),
                    )
                ),
            },
            "a leased witness",
        )
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

    def unplug(self) -> None:
        for cable in self.cables.values():
            cable.close()

    # -- what the witness sees

    def now(self) -> Life | None:
        """The launch that lives now."""
        seen = lives(self.file)
        return seen[-1] if seen and self.clock() - seen[-1].last < 10 * BEAT else None

    @staticmethod
    def clock() -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def runs(self, but: str = "", within: float = 60.0) -> Life:
        """The launch that lives now and is another one than that."""

        def look() -> Life | None:
            found = self.now()
            return found if found is not None and found.launch != but else None

        found: Life = until(look, f"another launch than {but or 'none'} lives", seen=self.seen, within=within)
        return found

    def seen(self) -> str:
        """What the programs say and what the witness saw, for a failure's message."""
        rows = [json.dumps(row) for one in self.made.status()["instances"] for row in one["replicas"]]
        keepers = [file.read_text()[-1000:] for file in self.made.data.glob("nodes/*/keeper.log")]
        beats = self.file.read_text().splitlines()[-5:] if self.file.exists() else []
        return "\n".join([*rows, *keepers, *self.told, *beats, f"now {self.clock():.3f}", self.made.logs()])

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
        began = self.clock()
        done = self.made.asked("drain", life.node)
        assert done.returncode == 0, done.stderr
        after = self.runs(but=life.launch)
        gap, whole = after.first - life_end(self.file, life), after.first - began
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
        began = self.clock()
        self.told.append(f"{number:3} {trouble.__name__} on {life.node}")
        trouble(life)
        self.told[-1] += f": {self.clock() - began:.1f} s"

    @property
    def troubles(self) -> tuple[Callable[[Life], None], ...]:
        return (
            self.cut_off, self.agent_stands_still, self.keeper_dies, self.session_is_ended, self.agent_dies,
            self.machine_dies, self.lock_is_deleted, self.agent_dies_for_a_moment, self.node_is_drained,
            self.consul_stands_still,
        )  # fmt: skip


def life_end(file: Path, life: Life) -> float:
    """When the last process of a launch was last seen."""
    return next(seen.last for seen in lives(file) if seen.launch == life.launch)


@contextmanager
def trial(server: ConsulServer, seed: int = 0) -> Iterator[Trial]:
    """The system runs, and the witness is seen."""
    with system(server.http, NODES, failover={"lostAfter": "1s"}, leases=FIGURES) as made, ExitStack() as ends:
        found = Trial(made, server, seed)
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
    given = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="tdie-rounds-") as folder:
        server = {"real": make_real, "embedded": make_embedded}[given.consul](Path(folder))
        server.start()
        try:
            with trial(server, given.seed) as made:
                for number in range(1, given.rounds + 1):
                    trouble = made.random.choice(made.troubles)
                    made.round(number, trouble)
                    print(*made.told[-1:], flush=True)  # noqa: T201
                seen = lives(made.file)
        finally:
            server.stop()
    wrong = faults(seen)
    print(f"{given.rounds} rounds, seed {given.seed}, T={T:g} D={D:g}: {len(seen)} launches, {len(wrong)} faults")  # noqa: T201
    print(*wrong, sep="\n")  # noqa: T201
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
