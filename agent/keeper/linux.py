"""The border to the kernel: who a process is, and signals that can only reach that one."""

from __future__ import annotations

import ctypes
import hashlib
import os
import resource
import signal
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_NAME = 15
PR_SET_CHILD_SUBREAPER = 36
MARKER_HOST = "TDIE_HOST"  # one launch of one host
MARKER_KEEPER = "TDIE_KEEPER"  # the data folder it belongs to
MARKER_LEASE = "TDIE_LEASE"  # it was started under a lease: the token


@dataclass(frozen=True, slots=True)
class Stat:
    """What /proc/PID/stat says that never changes, besides the state."""

    pid: int
    state: str
    parent: int
    group: int
    session: int
    start_time: int

    @property
    def dead(self) -> bool:
        return self.state in "ZX"


@dataclass(frozen=True, slots=True)
class Process:
    """One living process with the markers of its environment."""

    stat: Stat
    env: dict[str, str]


def now() -> float:
    """Seconds since boot, suspend included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def wall() -> str:
    """The time of day in UTC, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def keeper_id(data: Path) -> str:
    """A short name for a data folder, the same for every keeper that works on it."""
    return hashlib.sha256(os.fsencode(data.resolve())).hexdigest()[:12]


def become_subreaper() -> None:
    """Orphans of this process's descendants become its own children."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(die: bool = True) -> None:
    """The kernel kills this process when the thread that is its parent now ends; or, with False, does not any more."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL if die else 0)


def set_name(name: str) -> None:
    """`ps -o comm` shows this name (15 bytes)."""
    _prctl(PR_SET_NAME, ctypes.create_string_buffer(name.encode()[:15]))


def _prctl(option: int, value: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def spare_no_more() -> None:
    """Short of memory, the kernel ends this process like any other, unlike the keeper that began it; and it leaves no core."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    score = Path("/proc/self/oom_score_adj")
    if int(score.read_text()) < 0:
        score.write_text("0")


def stat(pid: int) -> Stat | None:
    """What the kernel says of a process, or None when there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    rest = text[text.rindex(")") + 2 :].split()
    return Stat(pid, rest[0], int(rest[1]), int(rest[2]), int(rest[3]), int(rest[19]))


def environ(pid: int) -> dict[str, str]:
    """The TDIE_ variables a process was started with; empty when it cannot be read (not ours)."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    found: dict[str, str] = {}
    for entry in raw.split(b"\0"):
        if entry.startswith(b"TDIE_"):
            key, _, value = entry.partition(b"=")
            found[key.decode()] = value.decode(errors="replace")
    return found


def marked(keeper: str) -> list[Process]:
    """Every living process that carries the marker of this keeper."""
    return [process for process in carrying(MARKER_KEEPER) if process.env[MARKER_KEEPER] == keeper]


def carrying(marker: str) -> list[Process]:
    """Every living process that carries this marker."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        env = environ(int(name))
        if marker in env and (seen := stat(int(name))) is not None and not seen.dead:
            found.append(Process(seen, env))
    return found


def sessions(leaders: Iterable[int]) -> list[Stat]:
    """Every living process of these sessions."""
    wanted = set(leaders)
    stats = (stat(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return [s for s in stats if s is not None and not s.dead and s.session in wanted]


def children() -> set[int] | None:
    """The direct children of this (single-threaded) process, or None when this kernel does not tell."""
    pid = os.getpid()
    try:
        return {int(child) for child in Path(f"/proc/self/task/{pid}/children").read_text().split()}
    except OSError:
        return None


def hold(pid: int, start_time: int) -> int | None:
    """A pidfd of exactly this process (pid and start time), or None when it is gone or the pid is another's now."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return None
    seen = stat(pid)
    if seen is not None and seen.start_time == start_time and not seen.dead:
        return descriptor
    os.close(descriptor)
    return None


def send(descriptor: int, number: int) -> bool:
    """The signal is sent to the process of this pidfd; False when it is gone."""
    try:
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    return True


def send_to(process: Stat, number: int) -> None:
    """The signal is sent to exactly this process, or to nobody."""
    descriptor = hold(process.pid, process.start_time)
    if descriptor is not None:
        try:
            send(descriptor, number)
        finally:
            os.close(descriptor)


def peer(connection: socket.socket) -> tuple[int, int]:
    """Pid and uid of the process at the other end of a unix socket."""
    pid, uid, _gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
