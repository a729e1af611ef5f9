"""The outside witness of a strict lease: every process of the replica writes when it lives, and the kernel says when it ends."""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from tests.e2e.system import System, instance, package, until

BEAT = 0.02

PROGRAM = """
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


def clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True, slots=True)
class Life:
    """One launch of the replica, with all processes of it, as the witness saw it."""

    launch: str
    node: str
    token: tuple[int, int]
    first: float
    last: float


class Beats:
    """What the replica's processes have written so far; only what is new is read."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._read = 0
        self._found: dict[str, Life] = {}
        self._firsts: dict[tuple[str, int], float] = {}  # of each process

    def lives(self, ends: Mapping[int, list[float]] | None = None) -> list[Life]:
        """Every launch, in the order in which they began. `ends` are moments at which processes of a pid ended."""
        self._look()
        found = dict(self._found)
        for (launch, pid), first in self._firsts.items() if ends else ():
            # A process that did not get to write any more was still there.
            end = min((each for each in (ends or {}).get(pid, ()) if each > first), default=0.0)
            found[launch] = replace(found[launch], last=max(found[launch].last, end))
        return sorted(found.values(), key=lambda life: life.first)

    def now(self) -> Life | None:
        """The launch that lives now."""
        seen = self.lives()
        return seen[-1] if seen and clock() - seen[-1].last < 10 * BEAT else None

    def _look(self) -> None:
        if not self.file.exists():
            return
        with self.file.open("rb") as beats:
            beats.seek(self._read)
            text = beats.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.decode().splitlines():
            at, launch, _role, pid, node, token = line.split()
            now, (epoch, _, index) = float(at), token.partition(".")
            self._firsts.setdefault((launch, int(pid)), now)
            one = self._found.setdefault(launch, Life(launch, node, (int(epoch), int(index)), now, now))
            self._found[launch] = replace(one, first=min(now, one.first), last=max(now, one.last))


def faults(seen: list[Life], excused: Collection[str] = ()) -> list[str]:
    """What must not be: two at once (but for launches of a machine that stood still), or a later one with a lower token."""
    wrong = []
    for before, after in pairwise(seen):
        if after.first <= before.last and before.launch not in excused:
            wrong.append(f"overlap of {before.last - after.first:.3f} s: {before} and {after}")
        if after.token < before.token:
            wrong.append(f"token went down: {before} and {after}")
    return wrong


class Ends:
    """When processes ended, as the kernel tells everybody who listens (its process events; for root, in the first network)."""

    @classmethod
    def listen(cls) -> Ends | None:
        """None where the kernel tells nobody: then the last words of a process are all there is."""
        with ExitStack() as undone:
            try:
                made = undone.enter_context(
                    socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 11)
                )  # NETLINK_CONNECTOR
                listening = cls(made)
            except OSError:
                return None
            undone.pop_all()
            return listening

    def __init__(self, made: socket.socket) -> None:
        self.at: dict[int, list[float]] = {}
        self.missed = 0  # times at which the kernel had more to say than we took
        self._socket = made
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)
        self._socket.bind((0, 1))  # CN_IDX_PROC
        listen = struct.pack("=IIIIHHI", 1, 1, 0, 0, 4, 0, 1)  # PROC_CN_MCAST_LISTEN
        self._socket.send(struct.pack("=IHHII", 16 + len(listen), 3, 0, 0, os.getpid()) + listen)
        self._socket.settimeout(0.2)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="ends of processes", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        since_boot = clock() - time.monotonic()
        while not self._closed:
            try:
                said = self._socket.recv(4096)
            except TimeoutError:
                continue
            except OSError:
                self.missed += 1
                continue
            what, _cpu, nanoseconds = struct.unpack_from("=IIQ", said, 36)
            if what == 0x80000000:  # PROC_EVENT_EXIT
                pid, group = struct.unpack_from("=II", said, 52)
                if pid == group:
                    self.at.setdefault(pid, []).append(nanoseconds / 1e9 + since_boot)

    def close(self) -> None:
        self._closed = True
        self._thread.join(5)
        self._socket.close()


def witness(name: str, instance_name: str, lease: str, file: Path) -> dict[str, str]:
    """The package of this name, which writes to the file when it lives, and an Instance that runs it once under a lease."""
    manifest = {
        "name": name, "version": "1.0.0", "runtime": "exec",
        "command": [sys.executable, "-c", PROGRAM.replace("BEAT", str(BEAT)), str(file)],
    }  # fmt: skip
    leased = instance(instance_name, package=f"{name}@1.0.0", replicas=1, lease=lease)
    return {
        f"packages/{name}/manifest.json": json.dumps(manifest),
        f"{name}.yaml": "---\n".join((package(name, path=f"packages/{name}"), leased)),
    }


@dataclass
class Watched:
    """A system with one replica under a strict lease, and what its witness sees."""

    made: System
    told: list[str] = field(default_factory=list)
    ends: Ends | None = None

    def __post_init__(self) -> None:
        self.beats = Beats(self.made.folder / "witness.txt")

    @property
    def file(self) -> Path:
        return self.beats.file

    def lives(self) -> list[Life]:
        return self.beats.lives(self.ends.at if self.ends else None)

    def now(self) -> Life | None:
        """The launch that lives now."""
        return self.beats.now()

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
        beats = [str(life) for life in self.lives()[-3:]]
        return "\n".join([*rows, *keepers, *self.told, *beats, f"now {clock():.3f}", self.made.logs()])

    def documents(self) -> dict[str, str]:
        """The replica's package and Instance."""
        return witness("witness", "one", "strict", self.file)

    def ended(self, life: Life) -> float:
        """When the last process of a launch was last there."""
        return next(seen.last for seen in self.lives() if seen.launch == life.launch)


def signal_all(pids: list[int], number: int) -> None:
    """A signal to each of them that is still there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
