"""Publishes a message for every file that appears in a folder."""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from pathlib import Path

from tdie_watched_folder import Seen, WatchedFolder
from watchfiles import Change, awatch

from agent.errors import Missing
from agent.sdk import Component, Message, MessagePublisher, Settings, pauses

SETTLE = 0.1  # seconds between two looks at a file's size and time
OLD_ENOUGH = 2.0  # a file untouched for so long is complete at the first look
LOOK_AGAIN = 30.0  # a whole look at the folder, should the kernel have lost an event
LOOK_UNWATCHED = 1.0  # the same while the kernel cannot watch
TRY_KERNEL_AGAIN = 60.0
PUBLISH_AGAIN = 1.0
WORKED = 5.0  # a watch that lasted so long was good; the next error is a new one
LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOSPC)


class FileWatcher(Component):
    """Reports each file once per appearance: those that are there at the start, created, or renamed."""

    def __init__(self, settings: Settings, publisher: MessagePublisher | None, log: logging.Logger) -> None:
        path = settings.path("path") if "path" in settings else settings.path("inputPath")
        self._folder = WatchedFolder(path, settings.text("filter", "*.*"))
        self._patience = settings.seconds("completeWithin", 30.0)
        self._absence = settings.seconds("folderBackWithin", 30.0)
        self._existing = settings.flag("reportExisting", True)
        self._room = asyncio.Semaphore(max(1, settings.integer("bufferSize", 8192)))
        self._publisher, self._log = publisher, log
        self._stopping = asyncio.Event()

    @property
    def path(self) -> Path:
        """The folder that is watched."""
        return self._folder.path

    async def start(self) -> None:
        try:
            await asyncio.to_thread(self._folder.entered)
            there = await asyncio.to_thread(self._folder.new, None, "existing")  # what appears from here on is new
        except (FileNotFoundError, NotADirectoryError) as error:
            raise Missing(f"the folder {self.path} is not there", code="FOLDER_MISSING") from error
        self.spawn(self._watch(there if self._existing else []), name="watch")

    async def stop(self) -> None:
        self._stopping.set()

    async def _watch(self, there: list[Seen]) -> None:
        """Follow the folder for ever. An error costs a whole look; one that lasts longer than `folderBackWithin` comes out."""
        await self._report_all(there)
        clock = asyncio.get_running_loop()
        broken_since: float | None = None
        unkept = iter(pauses(0.2, 2.0))
        while not self._stopping.is_set():
            began = clock.time()
            try:
                await asyncio.to_thread(self._folder.entered)
                await self._follow()
            except (OSError, RuntimeError) as error:  # RuntimeError: the watcher's own errors
                if _limit(error):
                    self._log.warning("the kernel cannot watch %s, looking each second instead: %s", self.path, error)
                    await self._look_often(clock.time() + TRY_KERNEL_AGAIN)
                    continue
                now = clock.time()
                if broken_since is None or now - began > WORKED:
                    broken_since, unkept = now, iter(pauses(0.2, 2.0))
                    self._log.warning("watching %s broke off, trying again: %s", self.path, error)
                if now - broken_since > self._absence:
                    raise
                await asyncio.sleep(next(unkept))

    async def _follow(self) -> None:
        """Look whenever the kernel tells of a change; returns when the component stops."""
        ended = asyncio.Event()  # of this watch only: the watcher sets it when it is cancelled
        changes = awatch(
            self.path,
            watch_filter=None,
            recursive=False,
            debounce=50,
            step=10,
            stop_event=ended,
            rust_timeout=int(LOOK_AGAIN * 1000),
            yield_on_timeout=True,
            ignore_permission_denied=True,
        )
        told = asyncio.create_task(anext(changes), name="first-change")  # armed before the first whole look
        stopping = asyncio.create_task(self._stopping.wait(), name="stopping")
        try:
            await asyncio.sleep(0.05)
            await self._look(None)
            while True:
                await asyncio.wait({told, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if stopping.done():
                    return
                batch = told.result()
                told = asyncio.create_task(anext(changes), name="next-change")
                await self._look(batch or None)
        finally:
            ended.set()
            stopping.cancel()
            told.cancel()
            await asyncio.gather(told, stopping, return_exceptions=True)
            await changes.aclose()

    async def _look_often(self, until: float) -> None:
        clock = asyncio.get_running_loop()
        while not self._stopping.is_set() and clock.time() < until:
            await self._look(None)
            await asyncio.sleep(LOOK_UNWATCHED)

    async def _look(self, changes: set[tuple[Change, str]] | None) -> None:
        """Look at what changed, or at the whole folder."""
        names = None if changes is None else {Path(path).name for _, path in changes if Path(path) != self.path}
        deleted = {Path(path).name for change, path in changes or () if change is Change.deleted}
        await self._report_all(await asyncio.to_thread(self._folder.new, names, "created", deleted))

    async def _report_all(self, new: list[Seen]) -> None:
        """A task for each; when `bufferSize` of them are under way, the others wait in the folder."""
        for seen in new:
            await self._room.acquire()
            self.spawn(self._report(seen), name=f"report {seen.name}")

    async def _report(self, seen: Seen) -> None:
        try:
            size = await self._complete(seen)
            if size is not None:  # else gone or replaced before it was complete
                await self._publish(seen, size)
        finally:
            self._room.release()

    async def _publish(self, seen: Seen, size: int) -> None:
        path = self.path / seen.name
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
        before: tuple[int, int] | None = None
        clock = asyncio.get_running_loop()
        began, pause = clock.time(), SETTLE
        while True:
            try:
                now = await asyncio.to_thread(self._folder.state, seen)
            except OSError as error:
                current, why = None, f"cannot be read: {error.strerror}"
            else:
                if now is None:
                    return None
                current, why = (now.st_size, now.st_mtime_ns), "still grows"
                if current == before or (seen.event == "existing" and time.time() - now.st_mtime > OLD_ENOUGH):
                    return now.st_size
            before = current
            if pause == SETTLE and clock.time() - began > self._patience:
                pause = 10 * SETTLE
                self._log.warning(
                    "%s %s after %g s; it is reported when it is complete", seen.name, why, self._patience
                )
            await asyncio.sleep(pause)


def _limit(error: Exception) -> bool:
    """Whether the kernel has no watch left for us, as far as the watcher lets us know."""
    text = str(error).lower()
    return getattr(error, "errno", None) in LIMITS or "limit" in text or any(f"os error {n})" in text for n in LIMITS)
