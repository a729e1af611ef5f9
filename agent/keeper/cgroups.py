"""cgroup v2, where we may write: limits that hold for all processes of a host together, and an end that none of them escapes.

    <mount>/tdie/<keeper>/hosts      the image, and what it forks without limits: they inherit it, which costs nothing
    <mount>/tdie/<keeper>/<launch>   a host with limits or a lease; moving a process there costs the kernel some 10 ms

Linux: Documentation/admin-guide/cgroup-v2.rst. A group with controllers for its children may hold no process itself.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from agent.keeper.protocol import HostOrder

WANTED = ("cpu", "memory", "pids")
PIDS = 4096  # processes and threads of one host
PIDS_OF_ALL = 16384  # … of all hosts without limits: the rest of the machine goes on
WEIGHT_OF_ALL = 50  # against 100 of everybody else: agent and keeper get their turn
PERIOD = 100_000  # microseconds
SHARED = "hosts"
_MISSING = {
    "memory": "memory is bounded per process",
    "cpu": "cpu is not bounded",
    "pids": "the number of processes is not bounded",
}


class Files(Protocol):
    """The file system of cgroups; everything raises OSError."""

    def read(self, path: str) -> str: ...
    def write(self, path: str, text: str) -> None: ...
    def make(self, path: str) -> None: ...
    def remove(self, path: str) -> None: ...
    def folders(self, path: str) -> list[str]: ...


class SystemFiles:
    """That of this machine."""

    def read(self, path: str) -> str:
        return Path(path).read_text()

    def write(self, path: str, text: str) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)  # the kernel takes a value in one write
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)

    def make(self, path: str) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(path, 0o755)

    def remove(self, path: str) -> None:
        os.rmdir(path)

    def folders(self, path: str) -> list[str]:
        return sorted(entry.name for entry in os.scandir(path) if entry.is_dir())


def mounted(mountinfo: str) -> str:
    """Where cgroup v2 is mounted, by /proc/self/mountinfo; empty when it is not."""
    for line in mountinfo.splitlines():
        own, _, rest = line.partition(" - ")
        if rest.split()[:1] == ["cgroup2"]:
            return own.split()[4]
    return ""


def of_this_machine(keeper: str) -> Cgroups:
    """The groups of this keeper on this machine."""
    made = Cgroups(SystemFiles(), mounted(Path("/proc/self/mountinfo").read_text()), keeper)
    made.open()
    return made


class Cgroups:
    """The groups of one keeper. Without a place for them (`root` is empty) every question has the answer "nothing"."""

    def __init__(self, files: Files, mount: str, keeper: str) -> None:
        self._files, self._mount, self._keeper = files, mount, keeper
        self.root = ""
        self.controllers: frozenset[str] = frozenset()
        self.why = "cgroup v2 is not mounted"

    def open(self) -> None:
        """The groups can be used from now on, as far as this machine lets us; what an earlier keeper left empty is gone."""
        if not self._mount:
            return
        root = f"{self._mount}/tdie/{self._keeper}"
        try:
            for folder in (f"{self._mount}/tdie", root):
                self._enable(folder.rpartition("/")[0])
                self._files.make(folder)
            self._enable(root)
            self._files.make(f"{root}/{SHARED}")
            self.controllers = frozenset(self._files.read(f"{root}/{SHARED}/cgroup.controllers").split()) & set(WANTED)
            if "pids" in self.controllers:
                self._files.write(f"{root}/{SHARED}/pids.max", str(PIDS_OF_ALL))
            if "cpu" in self.controllers:
                self._files.write(f"{root}/{SHARED}/cpu.weight", str(WEIGHT_OF_ALL))
        except OSError as error:
            self.why = f"{self._mount}: {error.strerror}"
            return
        self.root, self.why = root, ""
        for name in self._files.folders(root):
            if name != SHARED and not self.populated(name):
                self.remove(name)

    @property
    def missing(self) -> str:
        """What is not bounded on this machine, for people; empty when everything is."""
        if not self.root:
            return f"no cgroup of its own ({self.why}): {', '.join(_MISSING.values())}, leftovers are found by marker"
        lacking = [name for name in sorted(_MISSING) if name not in self.controllers]
        return f"no {', '.join(lacking)} controller: {', '.join(_MISSING[name] for name in lacking)}" if lacking else ""

    def bounds_memory(self, group: str) -> bool:
        """Whether the kernel ends a host of this group that takes too much."""
        return bool(group) and "memory" in self.controllers

    def prepare(self, launch: str, order: HostOrder) -> str:
        """The group for a new process of this order, with its limits; empty when it goes where it is forked."""
        if not self.root or (order.memory is None and order.cpu is None and order.lease is None):
            return ""
        group = self._of(launch)
        self._files.make(group)
        limits = {"pids": {"pids.max": str(PIDS)}}
        if order.memory is not None:
            limits["memory"] = {"memory.max": str(order.memory), "memory.swap.max": "0", "memory.oom.group": "1"}
        if order.cpu is not None:
            limits["cpu"] = {"cpu.max": f"{max(1000, round(order.cpu * PERIOD))} {PERIOD}"}
        for controller in self.controllers & limits.keys():
            for name, value in limits[controller].items():
                with contextlib.suppress(FileNotFoundError):  # a kernel without swap accounting lacks memory.swap.max
                    self._files.write(f"{group}/{name}", value)
        return group

    def share(self, pid: int) -> None:
        """The image, and with it every host it forks, is in the group of all."""
        if self.root:
            self._files.write(f"{self.root}/{SHARED}/cgroup.procs", str(pid))

    def kill(self, launch: str) -> None:
        """SIGKILL to every process of the group at once, forks under way included."""
        if self.root:
            with contextlib.suppress(FileNotFoundError):  # it has no group
                self._files.write(f"{self._of(launch)}/cgroup.kill", "1")

    def populated(self, launch: str) -> bool:
        """Whether any process is in the group or below it."""
        if not self.root or not launch:
            return False
        try:
            events = self._files.read(f"{self._of(launch)}/cgroup.events")
        except FileNotFoundError:
            return False
        return "populated 1" in events.splitlines()

    def processes(self, launch: str) -> list[int]:
        """The processes of the group and below it."""
        return [pid for folder in self._tree(self._of(launch)) for pid in self._members(folder)] if self.root else []

    def killed_for_memory(self, launch: str) -> bool:
        """Whether the kernel ended something of the group because it was at its limit."""
        if not self.root or "memory" not in self.controllers:
            return False
        try:
            events = self._files.read(f"{self._of(launch)}/memory.events")
        except FileNotFoundError:
            return False
        counts = dict(line.split() for line in events.splitlines())
        return counts.get("oom_kill", "0") != "0"

    def remove(self, launch: str) -> None:
        """The group is gone, if nothing is in it; else the next keeper tries again."""
        if self.root and launch:
            with contextlib.suppress(OSError):
                for folder in reversed(list(self._tree(self._of(launch)))):
                    self._files.remove(folder)

    def close(self) -> bool:
        """Whether nothing of this keeper is left here; what still runs keeps its group."""
        for folder in (f"{self.root}/{SHARED}", self.root, f"{self._mount}/tdie") if self.root else ():
            try:
                self._files.remove(folder)
            except OSError:
                return folder == f"{self._mount}/tdie"  # others use it
        return True

    def _enable(self, folder: str) -> None:
        """Whatever controllers there are count below this group."""
        there = self._files.read(f"{folder}/cgroup.controllers").split()
        for name in WANTED:
            if name in there:
                with contextlib.suppress(
                    OSError
                ):  # processes of others are in it: limits of that kind are said to be missing
                    self._files.write(f"{folder}/cgroup.subtree_control", f"+{name}")

    def _of(self, launch: str) -> str:
        return f"{self.root}/{launch}"

    def _tree(self, folder: str) -> Iterator[str]:
        """The group and those a host has made below it, parents first."""
        yield folder
        with contextlib.suppress(FileNotFoundError):
            for name in self._files.folders(folder):
                yield from self._tree(f"{folder}/{name}")

    def _members(self, folder: str) -> list[int]:
        try:
            return [int(pid) for pid in self._files.read(f"{folder}/cgroup.procs").split()]
        except FileNotFoundError:
            return []
