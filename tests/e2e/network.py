"""Machines (network namespaces) on a switch of their own, and ways between any two of them that can be cut without a word."""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import psutil

NOBODY = "02:00:00:00:00:fe"  # a hardware address that no machine has: what is sent to it is lost, and nobody is told
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def ip(*words: str, lines: Iterable[str] = ()) -> str:
    done = subprocess.run(
        ["ip", *words], input="\n".join(lines), capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 0, f"ip {' '.join(words)} {list(lines)}: {done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Network:
    """Who is on the switch, each with its address; nothing of it is in this machine's network."""

    spaces: Mapping[str, str]  # machine -> namespace
    addresses: Mapping[str, str]

    @contextmanager
    def inside(self, machine: str) -> Iterator[None]:
        """This thread, and every program it starts, is on that machine."""
        with (
            Path("/proc/thread-self/ns/net").open() as before,
            Path(f"/run/netns/{self.spaces[machine]}").open() as there,
        ):
            _enter(there.fileno())
            try:
                yield
            finally:
                _enter(before.fileno())

    def cut(self, some: Iterable[str], others: Iterable[str], *, back: bool = True) -> None:
        """What those send to the others is lost; with `back` also what the others send to them."""
        self._change(some, others, f"neigh replace {{}} lladdr {NOBODY} dev eth0 nud permanent", back=back)

    def join(self, some: Iterable[str], others: Iterable[str]) -> None:
        """Everything arrives again, both ways."""
        self._change(some, others, "neigh replace {} dev eth0 lladdr {mac} nud stale", back=True)

    def _change(self, some: Iterable[str], others: Iterable[str], line: str, *, back: bool) -> None:
        there, far = set(some), set(others)
        ways = {(a, b) for a, b in product(there, far) if a != b}
        if back:
            ways |= {(b, a) for a, b in ways}
        for machine in sorted({a for a, _ in ways}):
            to = [b for a, b in sorted(ways) if a == machine]
            lines = [line.format(self.addresses[b], mac=_mac(self.addresses[b])) for b in to]
            ip("-n", self.spaces[machine], "-batch", "-", lines=lines)

    def pids(self, machine: str) -> list[int]:
        """Every process on that machine: all of them are ours."""
        mine = os.getpid()  # a thread of this very process may be there as a guest
        return [pid for word in ip("netns", "pids", self.spaces[machine]).split() if (pid := int(word)) != mine]

    def end(self, machine: str) -> None:
        """Everything on that machine is killed within a moment, as when its power fails."""
        deadline = time.monotonic() + 15
        while left := [process for pid in self.pids(machine) if (process := _living(pid)) is not None]:
            assert time.monotonic() < deadline, f"on {machine} is left: {left}"
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.01)


@contextmanager
def network(addresses: Mapping[str, str]) -> Iterator[Network]:
    """These machines, joined by a switch in a namespace of its own; all of it goes away again with what runs there."""
    run = f"tdie{uuid.uuid4().hex[:6]}"
    switch, spaces = f"{run}sw", {name: f"{run}{name}" for name in addresses}
    made: list[str] = []
    try:
        for space in (switch, *spaces.values()):
            ip("netns", "add", space)
            made.append(space)
            ip("-n", space, "link", "set", "lo", "up")
        ip("-n", switch, "-batch", "-", lines=["link add br0 type bridge", "link set br0 up"])
        for name, space in spaces.items():
            mac = _mac(addresses[name])
            ip(
                "-n", switch, "-batch", "-",
                lines=[
                    f"link add to-{name} type veth peer name eth0 address {mac} netns {space}",
                    f"link set to-{name} master br0", f"link set to-{name} up",
                ],
            )  # fmt: skip
            ip("-n", space, "-batch", "-", lines=[f"addr add {addresses[name]}/24 dev eth0", "link set eth0 up"])
        yield Network(spaces, addresses)
    finally:
        for space in made:
            ip("netns", "del", space)


def _mac(address: str) -> str:
    return "02:00:" + ":".join(f"{int(part):02x}" for part in address.split("."))


def _living(pid: int) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process
    except psutil.NoSuchProcess:
        return None


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "cannot enter a network namespace")
