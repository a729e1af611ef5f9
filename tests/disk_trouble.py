"""A disk that fails at its n-th write: everything Python code writes below a folder, files and sqlite alike, goes through a count.

Writing is what needs the disk: opening a file for it, each `write` and `fsync`, making, renaming and linking entries, and each
sqlite statement that changes something. What is below the count (the kernel, sqlite's own files) is met on a real small disk.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

NO_SMALL_DISK = "NO SMALL DISK: mounting one needs root"
_SQLITE = {
    errno.ENOSPC: ("database or disk is full", sqlite3.SQLITE_FULL),
    errno.EIO: ("disk I/O error", sqlite3.SQLITE_IOERR),
}
_WAL_MARK = 18  # of a database's first bytes: 2 when it is in WAL mode
_READS = (
    "SELECT",
    "ROLLBACK",
    "PRAGMA QUICK_CHECK",
    "PRAGMA USER_VERSION",
    "PRAGMA SYNCHRONOUS",
    "PRAGMA LOCKING_MODE",
)


original_open = io.open


class Disk:
    """The disk below `root`. `failing` says whether anything was refused yet."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self.writes = 0
        self.refused: list[str] = []
        self._fail_at: int | None = None
        self._errno = errno.ENOSPC
        self._lasting = False

    def fail_at(self, number: int, error: int, *, lasting: bool) -> None:
        """From now on the `number`-th write (from 1) fails, and with `lasting` every one after it too."""
        self.writes, self._fail_at, self._errno, self._lasting = 0, number, error, lasting

    def heal(self) -> None:
        """Writes succeed again."""
        self._fail_at = None

    def hold(self, path: Any) -> bool:
        """Whether the path is on this disk."""
        if isinstance(path, int):
            try:
                path = os.readlink(f"/proc/self/fd/{path}")
            except OSError:
                return False
        return str(Path(os.path.abspath(path))).startswith(self._root)

    def write(self, what: str, path: Any) -> None:
        """One more write; OSError when it is the one that fails."""
        if self._next(what):
            raise OSError(self._errno, os.strerror(self._errno), str(path))

    def statement(self, sql: str, path: str) -> None:
        """One more statement of sqlite; its own error when it is the one that fails."""
        words = sql.strip().upper()
        if words.startswith("PRAGMA JOURNAL_MODE") and _is_wal(path) == ("WAL" in words):
            return  # it is in that mode
        if words.startswith("CREATE TABLE IF NOT EXISTS") and os.path.getsize(path):
            return  # the file has its tables
        if words.startswith(_READS):
            return
        if self._next(sql.strip()[:30]):
            message, code = _SQLITE[self._errno]
            error = sqlite3.OperationalError(message)
            error.sqlite_errorcode = code
            raise error

    def _next(self, what: str) -> bool:
        self.writes += 1
        if self._fail_at is None or self.writes < self._fail_at or (self.writes > self._fail_at and not self._lasting):
            return False
        self.refused.append(what)
        return True


def _is_wal(path: str) -> bool:
    try:
        with original_open(path, "rb") as file:
            return file.read(_WAL_MARK + 1)[-1:] == b"\2"
    except OSError:
        return False


class _File(io.FileIO):
    disk: Disk

    def write(self, data: Any) -> int:
        self.disk.write("write", self.name)
        return super().write(data)


@contextmanager
def counted(root: Path) -> Iterator[Disk]:
    """Everything written below `root` meanwhile is counted by the Disk."""
    disk = Disk(root)

    class Connection(sqlite3.Connection):
        def __init__(self, database: Any, *args: Any, **options: Any) -> None:
            super().__init__(database, *args, **options)
            self.path = str(database)

        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            disk.statement(sql, self.path)
            return super().execute(sql, *args)

        def executemany(self, sql: str, *args: Any) -> sqlite3.Cursor:
            disk.statement(sql, self.path)
            return super().executemany(sql, *args)

        def executescript(self, sql: str) -> sqlite3.Cursor:
            disk.statement(sql, self.path)
            return super().executescript(sql)

        def commit(self) -> None:
            if self.in_transaction:
                disk.statement("COMMIT", self.path)
            super().commit()

    def connect(database: Any, *args: Any, **options: Any) -> sqlite3.Connection:
        if not disk.hold(database):
            return original_connect(database, *args, **options)
        return original_connect(database, *args, **{"factory": Connection, **options})

    def opened(
        file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, *args: Any, **options: Any
    ) -> Any:
        if not set(mode) & set("wax+") or not disk.hold(file):
            return original_open(file, mode, buffering, encoding, *args, **options)
        if not isinstance(file, int):
            disk.write("open", file)
        raw = _File(file, mode.replace("b", "").replace("t", ""), options.get("closefd", True))
        raw.disk = disk
        binary = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return binary if "b" in mode else io.TextIOWrapper(binary, encoding)

    def low_open(path: Any, flags: int, *args: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and options.get("dir_fd") is None and disk.hold(path):
            disk.write("open", path)
        return original_low_open(path, flags, *args, **options)

    def patched(name: str) -> Any:
        original: Callable[..., Any] = getattr(os, name)

        def wrapper(path: Any, *args: Any, **options: Any) -> Any:
            if disk.hold(path) and not (name == "mkdir" and os.path.isdir(path)):
                disk.write(name, path)
            return original(path, *args, **options)

        return mock.patch.object(os, name, wrapper)

    original_connect: Callable[..., sqlite3.Connection] = sqlite3.connect
    original_low_open = os.open
    patches = [patched(name) for name in ("fsync", "mkdir", "rename", "replace", "link", "chmod", "write")]
    patches += [
        mock.patch.object(sqlite3, "connect", connect),
        mock.patch.object(io, "open", opened),
        mock.patch.object(builtins, "open", opened),
        mock.patch.object(os, "open", low_open),
    ]
    for patch in patches:
        patch.start()
    try:
        yield disk
    finally:
        for patch in patches:
            patch.stop()


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system in memory at the folder, of a size as mount spells it; the test is left out where none can be mounted."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(NO_SMALL_DISK)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True, timeout=10)


class Filler:
    """A file that takes all room of a file system but some pages."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "filler"

    def fill(self, pages: int = 0) -> None:
        """So many pages are free now."""
        free = os.statvfs(self._file.parent)
        with self._file.open("ab") as file:
            file.write(bytes(max(0, free.f_bavail - pages) * free.f_frsize))

    def empty(self) -> None:
        """There is room again."""
        self._file.unlink()
