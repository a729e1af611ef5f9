"""Log files of replicas stay bounded, whatever writes them.

A program keeps the descriptor it was started with, so a file cannot be moved from under it: its content is copied to `NAME.1` and
the file itself is cut to nothing. Everybody appends, so what is written next starts at its beginning. A replica that writes faster
than is looked loses the older part of that: a flood costs neither the disk nor the time to copy it.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import structlog

log = structlog.get_logger("logs")

LOOK = 5.0  # seconds between looks at sizes
LOOK_AT_FLOOD = 0.5  # … while some log is flooded
OVER_AFTER = 60.0  # seconds without another flood until the problem is over
FORGOTTEN = 7 * 86400.0  # seconds after which the log of a replica that is not here any more is deleted
_CHUNK = 1 << 20
FLOOD = 2  # times the largest size


@dataclass(slots=True)
class Tidied:
    """What was done: a line for each log that was begun anew or deleted, and how many bytes a flood has cost which replica."""

    lines: list[str] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)


async def keep_bounded(
    folder: Path, *, largest: int, keep: int, here: Callable[[str], bool], problem: Callable[[str, str], None]
) -> None:
    """No log file grows far beyond `largest` bytes, until cancelled; `keep` older parts stay. `here`: is there such a replica.

    `problem` is told of LOG_FLOOD while a replica writes more than is kept.
    """
    pause, last = LOOK, 0.0
    lost: Counter[str] = Counter()
    while True:
        await asyncio.sleep(pause)
        try:
            done = await asyncio.to_thread(tidy, folder, largest, keep, here)
        except OSError as error:
            log.warning("log files cannot be kept small", folder=str(folder), error=str(error))
            continue
        for line in done.lines:
            log.info("tidied", what=line)
        pause = LOOK_AT_FLOOD if done.dropped else LOOK
        last = time.monotonic() if done.dropped else last
        lost.update(done.dropped)
        if lost and time.monotonic() - last > OVER_AFTER:
            lost.clear()
        told = [f"{name}: {count >> 20} MiB of its log were dropped" for name, count in sorted(lost.items())]
        problem("LOG_FLOOD", "; ".join(told[:10]))


def tidy(folder: Path, largest: int, keep: int, here: Callable[[str], bool]) -> Tidied:
    """Parts are begun, and logs of replicas that left long ago deleted."""
    done = Tidied()
    now = time.time()
    for path in sorted(folder.glob("*.log")):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        replica = path.name.removesuffix(".log")
        if found.st_size > largest:
            dropped = begin_anew(path, keep, largest)
            done.lines.append(f"{path.name}: {found.st_size} bytes, begun anew")
            if dropped:
                done.dropped[replica] = dropped
        elif now - found.st_mtime > FORGOTTEN and not here(replica):
            for part in (path, *older(path)):
                part.unlink(missing_ok=True)
            done.lines.append(f"{path.name}: deleted, its replica left long ago")
    return done


def begin_anew(path: Path, keep: int, largest: int) -> int:
    """The file is empty, and the end of what it held is its newest older part; comes back with how much is in none.

    More than two times `largest` is a flood, of which only the last `largest` bytes stay, below a line that says so. A crash in
    between leaves everything twice at worst.
    """
    for number in range(keep, 1, -1):
        if (before := part(path, number - 1)).exists():
            before.replace(part(path, number))
    target = part(path, 1)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with path.open("r+b") as source, os.fdopen(descriptor, "wb") as copy:
        size = os.fstat(source.fileno()).st_size
        dropped = size - largest if size > FLOOD * largest else 0
        if dropped:
            source.seek(dropped)
            dropped += len(source.readline(_CHUNK))
            copy.write(f"[tdie] {dropped} bytes of this log were dropped: it grew faster than it is kept\n".encode())
        copied = _copy(source, copy, largest)
        source.truncate(0)
    if not keep:
        target.unlink()
    return dropped + max(0, size - dropped - copied)


def _copy(source: BinaryIO, copy: BinaryIO, largest: int) -> int:
    """How many bytes were copied: all, unless they come faster than that, so that nobody chases a flood for ever."""
    copied, most = 0, FLOOD * largest
    while copied < most and (chunk := source.read(min(_CHUNK, most - copied))):
        copied += copy.write(chunk)
    return copied


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
