"""Seeing at once that a ref of a repository on this machine moved. Events are hints; what counts is what the files say."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import aclosing
from pathlib import Path

from watchfiles import Change, awatch

_QUIET = 5  # milliseconds without events that end a batch
_LOOK = 1000  # milliseconds after which the files are looked at without any event

Signature = tuple[object, ...]


def git_folder(path: Path) -> Path | None:
    """The folder that holds a repository's refs: bare, with a work tree, or a linked work tree. None if there is none."""
    found = path / ".git" if (path / ".git").exists() else path
    try:
        if found.is_file():
            found = (path / found.read_text().removeprefix("gitdir:").strip()).resolve()
        common = found / "commondir"
        if common.is_file():
            found = (found / common.read_text().strip()).resolve()
    except OSError:
        return None
    return found if (found / "HEAD").is_file() else None


def signature(folder: Path, ref: str) -> Signature:
    """What the ref's files say now; it differs whenever the ref moved."""
    return tuple(_content(folder / name) for name in (ref, f"refs/heads/{ref}", f"refs/tags/{ref}", "packed-refs"))


def _content(file: Path) -> object:
    try:
        if file.name == "packed-refs":  # large, and always replaced as a whole
            status = file.stat()
            return status.st_ino, status.st_mtime_ns, status.st_size
        return file.read_bytes() if file.is_file() else None
    except OSError:
        return None


async def until_moved(folder: Path, ref: str, before: Signature) -> Signature:
    """What the ref's files say, once it is something else than `before`; at once if it already is."""
    now = await asyncio.to_thread(signature, folder, ref)
    if now != before:
        return now
    async with asyncio.TaskGroup() as tasks:
        watches = [
            tasks.create_task(_watch(folder, ref, before, [folder], recursive=False), name="watch packed refs"),
            tasks.create_task(_watch(folder, ref, before, [folder / "refs"], recursive=True), name="watch refs"),
        ]
        await asyncio.wait(watches, return_when=asyncio.FIRST_COMPLETED)
        for watch in watches:
            watch.cancel()
    return await asyncio.to_thread(signature, folder, ref)


async def _watch(folder: Path, ref: str, before: Signature, paths: Iterable[Path], *, recursive: bool) -> None:
    batches = awatch(
        *paths,
        watch_filter=_is_ref,
        debounce=50,
        step=_QUIET,
        rust_timeout=_LOOK,
        yield_on_timeout=True,
        recursive=recursive,
    )
    try:
        async with aclosing(batches):
            async for _ in batches:
                if await asyncio.to_thread(signature, folder, ref) != before:
                    return
    except (OSError, RuntimeError):
        # No watch to be had (none left on this machine, or the folder is gone): looking now and then is enough.
        while await asyncio.to_thread(signature, folder, ref) == before:
            await asyncio.sleep(_LOOK / 1000)


def _is_ref(change: Change, path: str) -> bool:
    return not path.endswith(".lock")
