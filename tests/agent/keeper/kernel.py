"""A cgroup v2 hierarchy in memory, with the rules of the kernel that matter here."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field

ALL = ("cpu", "memory", "pids")


@dataclass
class Group:
    controllers: tuple[str, ...]
    below: set[str] = field(default_factory=set)  # enabled for the children
    processes: set[int] = field(default_factory=set)
    values: dict[str, str] = field(default_factory=dict)
    ooms: int = 0


def _fail(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class Kernel:
    """Implements `Files`; `charge` is what a process does to its memory."""

    def __init__(self, mount: str = "/cg", controllers: tuple[str, ...] = ALL, others: tuple[int, ...] = ()) -> None:
        self.mount = mount
        self.groups = {mount: Group(controllers, processes=set(others))}
        self.namespaced = bool(others)  # the top of a namespace is no exception to the rule of no inner processes
        self.read_only = False

    def _at(self, path: str) -> tuple[Group, str]:
        folder, _, name = path.rpartition("/")
        if folder not in self.groups:
            raise _fail(errno.ENOENT)
        return self.groups[folder], name

    def _tree(self, path: str) -> list[str]:
        return [name for name in self.groups if name == path or name.startswith(f"{path}/")]

    def make(self, path: str) -> None:
        parent, _ = self._at(path)
        if self.read_only:
            raise _fail(errno.EROFS)
        self.groups.setdefault(path, Group(tuple(c for c in parent.controllers if c in parent.below)))

    def remove(self, path: str) -> None:
        if path not in self.groups:
            raise _fail(errno.ENOENT)
        if len(self._tree(path)) > 1 or self.groups[path].processes:
            raise _fail(errno.EBUSY)
        del self.groups[path]

    def folders(self, path: str) -> list[str]:
        if path not in self.groups:
            raise _fail(errno.ENOENT)
        depth = path.count("/") + 1
        return sorted(n.rpartition("/")[2] for n in self.groups if n.startswith(f"{path}/") and n.count("/") == depth)

    def read(self, path: str) -> str:
        group, name = self._at(path)
        folder = path.rpartition("/")[0]
        match name:
            case "cgroup.controllers":
                return " ".join(group.controllers) + "\n"
            case "cgroup.procs":
                return "".join(f"{pid}\n" for pid in sorted(group.processes))
            case "cgroup.events":
                inside = any(self.groups[each].processes for each in self._tree(folder))
                return f"populated {int(inside)}\nfrozen 0\n"
            case "memory.events" if "memory" in group.controllers:
                return f"low 0\nhigh 0\nmax 3\noom {group.ooms}\noom_kill {group.ooms}\n"
        if name in group.values:
            return group.values[name]
        raise _fail(errno.ENOENT)

    def write(self, path: str, text: str) -> None:
        group, name = self._at(path)
        folder = path.rpartition("/")[0]
        exempt = folder == self.mount and not self.namespaced
        if self.read_only:
            raise _fail(errno.EROFS)
        if name == "cgroup.subtree_control":
            if text[1:] not in group.controllers:
                raise _fail(errno.ENOENT)
            if group.processes and not exempt:
                raise _fail(errno.EBUSY)
            group.below.add(text[1:])
            for child in self.folders(folder):
                known = self.groups[f"{folder}/{child}"]
                known.controllers = tuple(c for c in group.controllers if c in group.below)
        elif name == "cgroup.procs":
            if group.below and not exempt:
                raise _fail(errno.EBUSY)
            for other in self.groups.values():
                other.processes.discard(int(text))
            group.processes.add(int(text))
        elif name == "cgroup.kill":
            for each in self._tree(folder):
                self.groups[each].processes.clear()
        elif name.partition(".")[0] in group.controllers:
            group.values[name] = text
        else:
            raise _fail(errno.ENOENT)

    def charge(self, pid: int, size: int) -> None:
        """A process has taken this much memory."""
        group = next(group for group in self.groups.values() if pid in group.processes)
        if size > int(group.values.get("memory.max", "9" * 18)):
            group.ooms += 1
            group.processes.clear() if group.values.get("memory.oom.group") == "1" else group.processes.discard(pid)
