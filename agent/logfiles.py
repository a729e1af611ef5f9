"""Log files of replicas stay bounded, whatever writes them.

A program keeps the descriptor it was started with, so a file cannot be moved from under it: its content is copied to `NAME.1` and
the file itself is cut to nothing. Everybody appends, so what is written next starts at its beginning.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import structlog

log = structlog.get_logger("logs")

LOOK = 5.0  # seconds between looks at sizes
FORGOTTEN = 7 * 86400.0  # seconds after which the log of a replica that is not here any more is deleted
_CHUNK = 1 << 20


async def keep_bounded(folder: Path, *, largest: int, keep: int, here: Callable[[str], bool]) -> None:
    """No log file grows far beyond `largest` bytes, until cancelled; `keep` older parts stay. `here`: is there such a replica."""
    while True:
        await asyncio.sleep(LOOK)
        try:
            for line in await asyncio.to_thread(tidy, folder, largest, keep, here):
                log.info("tidied", what=line)
        except OSError as error:
            log.warning("log files cannot be kept small", folder=str(folder), error=str(error))


def tidy(folder: Path, largest: int, keep: int, here: Callable[[str], bool]) -> list[str]:
    """What was done, one line each: parts begun, and logs of replicas that left long ago deleted."""
    done = []
    now = time.time()
    for path in sorted(folder.glob("*.log")):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        replica = path.name.removesuffix(".log")
        if found.st_size > largest:
            begin_anew(path, keep)
            done.append(f"{path.name}: {found.st_size} bytes, begun anew")
        elif now - found.st_mtime > FORGOTTEN and not here(replica):
            for part in (path, *older(path)):
                part.unlink(missing_ok=True)
            done.append(f"{path.name}: deleted, its replica left long ago")
    return done


def begin_anew(path: Path, keep: int) -> None:
    """The file is empty, and what it held is its newest older part. A crash in between leaves everything twice at worst."""
    for number in range(keep, 1, -1):
        if (before := part(path, number - 1)).exists():
            before.replace(part(path, number))
    target = part(path, 1)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with path.open("r+b") as source, os.fdopen(descriptor, "wb") as copy:
        shutil.copyfileobj(source, copy, _CHUNK)
        copy.flush()
        copy.write(source.read())  # what came in the meantime: next to nothing is lost between this and the cut
        source.truncate(0)
    if not keep:
        target.unlink()


def part(path: Path, number: int) -> Path:
    """The file of an older part; 1 is the newest."""
    return path.with_name(f"{path.name}.{number}")


def older(path: Path) -> list[Path]:
    """The older parts that exist, newest first."""
    found: list[Path] = []
    while (candidate := part(path, len(found) + 1)).exists():
        found.append(candidate)
    return found


def tail(path: Path, lines: int, limit: int = 1 << 20) -> str:
    """The last lines of a log, from its newest older part too if need be; at most `limit` bytes. Empty while there is none."""
    text = _end(path, limit)
    if text.count(b"\n") < lines and len(text) < limit:
        text = _end(part(path, 1), limit - len(text)) + text
    return b"\n".join(text.rstrip(b"\n").split(b"\n")[-lines:]).decode(errors="replace") + ("\n" if text else "")


def size_of(path: Path) -> int:
    """Bytes of a file, 0 while there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _end(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            return file.read(limit)
    except FileNotFoundError:
        return b""
