"""A log as it grows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from agent import logfiles


async def follow(path: Path, lines: int) -> AsyncIterator[str]:
    """The end of the file, then what is appended; a file that was begun anew is read from its start."""
    at = await asyncio.to_thread(logfiles.size_of, path)
    yield await asyncio.to_thread(logfiles.tail, path, lines)
    while True:
        await asyncio.sleep(0.25)
        text, at = await asyncio.to_thread(_appended, path, at)
        if text:
            yield text


def _appended(path: Path, at: int) -> tuple[str, int]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(at if size >= at else 0)
            data = file.read(1 << 20)
            return data.decode(errors="replace"), file.tell()
    except FileNotFoundError:
        return "", 0
