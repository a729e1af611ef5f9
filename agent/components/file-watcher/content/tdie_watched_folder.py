"""Which files of a folder are new since the last look. Blocking: for a thread."""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

Identity = tuple[int, int]  # device and inode


@dataclass(frozen=True)
class Seen:
    """One appearance of one file."""

    name: str
    identity: Identity
    event: str  # existing, created or renamed


class WatchedFolder:
    """Remembers the files it has seen; an error leaves that memory as it was, so that nothing is reported twice."""

    def __init__(self, path: Path, pattern: str) -> None:
        self.path, self._pattern = path, pattern
        self._known: dict[str, Identity] = {}
        self._identity: Identity | None = None

    def entered(self) -> None:
        """From now on the folder that is there is the one watched. OSError when there is none."""
        self._identity = self._folder()

    def new(self, names: Iterable[str] | None, event: str, deleted: Iterable[str] = ()) -> list[Seen]:
        """What appeared among these names, or in the whole folder. OSError when it cannot be said.

        `deleted` were gone for a moment: what is there under such a name is new, even when it got the same inode again.
        """
        if self._identity is not None and self._folder() != self._identity:
            raise FileNotFoundError(f"{self.path} is another folder now")
        there = set(os.listdir(self.path) if names is None else names)
        if names is None:
            there |= set(self._known)
        found = {name: identity for name in there if (identity := self._file(name)) is not None}
        gone = there - set(found)
        moved = {known: name for name, known in self._known.items() if name not in found}
        for name in {*gone, *deleted}:
            self._known.pop(name, None)
        new = []
        for name in sorted(found):
            identity, before = found[name], self._known.get(name)
            if before == identity:
                continue
            self._known[name] = identity
            if self._pattern == "*.*" or fnmatch.fnmatch(name, self._pattern):
                new.append(Seen(name, identity, "renamed" if event == "created" and identity in moved else event))
        return new

    def state(self, seen: Seen) -> os.stat_result | None:
        """Size and time of the file as it is; None when it is gone or another one. OSError when that cannot be said."""
        try:
            now = (self.path / seen.name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return now if (now.st_dev, now.st_ino) == seen.identity else None

    def _folder(self) -> Identity:
        found = self.path.stat()
        if not stat.S_ISDIR(found.st_mode):
            raise NotADirectoryError(f"{self.path} is no folder")
        return found.st_dev, found.st_ino

    def _file(self, name: str) -> Identity | None:
        try:
            found = (self.path / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            self._folder()  # a folder that is gone says nothing about its files
            return None
        return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None
