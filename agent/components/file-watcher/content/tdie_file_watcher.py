"""Publishes a message for every file that appears in a folder."""

from __future__ import annotations

import asyncio
import fnmatch
import logging
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from watchfiles import awatch

from agent.errors import Missing
from agent.sdk import Component, Message, MessagePublisher, Settings

SETTLE = 0.1  # seconds between two looks at a file's size and time
OLD_ENOUGH = 2.0  # a file untouched for so long is complete at the first look
LOOK_AGAIN = 30.0  # a whole look at the folder, should the kernel have lost an event
PUBLISH_AGAIN = 1.0
FOLDER_BACK_WITHIN = 30.0
WORKED = 5.0  # a watch that lasted so long was good; the next error is a new one


@dataclass(frozen=True)
class Seen:
    """One appearance of one file."""

    name: str
    identity: tuple[int, int]  # device and inode
    event: str  # existing, created or renamed


class FileWatcher(Component):
    """Reports each file once per appearance: those that are there at the start, created, or renamed."""

    def __init__(self, settings: Settings, publisher: MessagePublisher | None, log: logging.Logger) -> None:
        self._folder = settings.path("path") if "path" in settings else settings.path("inputPath")
        self._filter = settings.text("filter", "*.*")
        self._patience = settings.seconds("completeWithin", 30.0)
        settings.integer("bufferSize", 8192)  # checked and not needed: the kernel's queue is not ours to size
        self._publisher, self._log = publisher, log
        self._known: dict[str, tuple[int, int]] = {}
        self._stop = asyncio.Event()

    async def start(self) -> None:
        if not await asyncio.to_thread(self._folder.is_dir):
            raise Missing(f"the folder {self._folder} is not there", code="FOLDER_MISSING")
        await self._look(None, "existing")  # what appears from here on is new
        self.spawn(self._watch(), name="watch")

    async def stop(self) -> None:
        self._stop.set()

    async def _watch(self) -> None:
        """Follow the folder for ever; an error of the watcher costs a whole look, the folder's absence some patience."""
        loop = asyncio.get_running_loop()
        broken_since: float | None = None
        while not self._stop.is_set():
            began = loop.time()
            try:
                await self._follow()
            except (OSError, RuntimeError) as error:  # RuntimeError: the watcher's own errors
                now = loop.time()
                if broken_since is None or now - began > WORKED:
                    broken_since = now
                if now - broken_since > FOLDER_BACK_WITHIN:
                    raise
                self._log.warning("watching %s broke off, trying again: %s", self._folder, error)
                await asyncio.sleep(1.0)

    async def _follow(self) -> None:
        changes = awatch(
            self._folder,
            watch_filter=None,
            recursive=False,
            debounce=50,
            step=10,
            stop_event=self._stop,
            rust_timeout=int(LOOK_AGAIN * 1000),
            yield_on_timeout=True,
            ignore_permission_denied=True,
        )
        looked = asyncio.create_task(
            anext(changes), name="first-look"
        )  # the watch is armed before the first whole look
        try:
            await asyncio.sleep(0.05)
            await self._look(None, "created")
            while True:
                try:
                    batch = await looked
                except StopAsyncIteration:
                    return
                await self._look({Path(path).name for _, path in batch} if batch else None, "created")
                looked = asyncio.create_task(anext(changes), name="next-look")
        finally:
            looked.cancel()
            await asyncio.gather(looked, return_exceptions=True)
            await changes.aclose()

    async def _look(self, names: Iterable[str] | None, event: str) -> None:
        for seen in await asyncio.to_thread(self._new, names, event):
            self.spawn(self._report(seen), name=f"report {seen.name}")

    def _new(self, names: Iterable[str] | None, event: str) -> list[Seen]:
        """What appeared among these names, or in the whole folder; the known files are brought up to date."""
        there = set(os.listdir(self._folder)) if names is None else set(names)
        if names is None:
            there |= set(self._known)
        elif not self._folder.is_dir():
            raise FileNotFoundError(f"the folder {self._folder} is gone")
        found = {name: identity for name in there if (identity := self._identity(name)) is not None}
        gone = {identity for name in there - set(found) if (identity := self._known.pop(name, None)) is not None}
        new = []
        for name in sorted(found):
            if self._known.get(name) != found[name]:
                renamed = found[name] in gone or any(found[name] == k for n, k in self._known.items() if n != name)
                self._known[name] = found[name]
                if self._wanted(name):
                    new.append(Seen(name, found[name], "renamed" if renamed and event == "created" else event))
        return new

    def _wanted(self, name: str) -> bool:
        return self._filter == "*.*" or fnmatch.fnmatch(name, self._filter)

    def _identity(self, name: str) -> tuple[int, int] | None:
        try:
            seen = (self._folder / name).stat()
        except OSError:
            return None
        return (seen.st_dev, seen.st_ino) if stat.S_ISREG(seen.st_mode) else None

    async def _report(self, seen: Seen) -> None:
        size = await self._complete(seen)
        if size is None:
            return  # gone or replaced before it was complete
        path = self._folder / seen.name
        content = {"fileName": seen.name, "filePath": str(path), "fileSize": size, "eventType": seen.event}
        self._log.info("file %s", seen.event, extra={"file": str(path), "size": size})
        if self._publisher is None:
            return
        message = Message(content=content, type="FileWatcherMessage", properties={"fileName": seen.name})
        while True:
            try:
                await self._publisher.publish(message)
            except Exception as error:  # noqa: BLE001 - whatever a publisher raises, the file is not lost
                self._log.warning("publishing %s failed, trying again: %s", path, error)
                await asyncio.sleep(PUBLISH_AGAIN)
            else:
                return

    async def _complete(self, seen: Seen) -> int | None:
        """The size of the file once size and time stand still; None when it is gone."""
        path, before, warned = self._folder / seen.name, None, False
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            try:
                now = path.stat()
            except OSError:
                return None
            if (now.st_dev, now.st_ino) != seen.identity:
                return None
            current = (now.st_size, now.st_mtime_ns)
            if current == before or (seen.event == "existing" and _age(now) > OLD_ENOUGH):
                return now.st_size
            before = current
            if not warned and loop.time() - began > self._patience:
                warned = True
                self._log.warning("%s still grows after %g s; it is reported when it is complete", path, self._patience)
            await asyncio.sleep(SETTLE if not warned else 10 * SETTLE)


def _age(seen: os.stat_result) -> float:
    from time import time

    return time() - seen.st_mtime
