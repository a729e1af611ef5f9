"""Processes the files of a folder: found by itself, or brought by the messages of a file watcher."""

from __future__ import annotations

import asyncio
import fnmatch
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from agent.sdk import Component, InstanceId, Message, MessagePublisher, Settings, derived_id, periodic

COMPLETE_WITHIN = 30.0  # seconds a file may still be written to
LOOK, HEARTBEAT = 1.0, 60.0


@dataclass(frozen=True)
class Seen:
    """One file as it was found; another file of the same name is another one."""

    path: Path
    size: int
    changed: int
    inode: int

    @property
    def key(self) -> str:
        return f"{self.path} {self.inode} {self.changed} {self.size}"


class FileProcessor(Component):
    """Publishes FileProcessed with each line stripped and in upper case, and archives the file; else FileProcessingError.

    The message of a file always has the same id: work that is done again after a crash counts once.
    """

    parallel = 8  # a file that fails and waits does not hold up the others

    def __init__(self, settings: Settings, publisher: MessagePublisher, instance: InstanceId) -> None:
        self._input = settings.path("inputPath")
        self._filter = settings.text("filter", "*.*")
        self._retries = settings.integer("maxRetries", 3)
        self._delay = settings.seconds("retryDelaySeconds", 30.0)
        self._archive = settings.path("archivePath", self._input / "archive")
        self._error = settings.path("errorPath", self._input / "error")
        self._watch = settings.flag("watch", True)
        self._publisher, self._id = publisher, instance
        self._busy: set[str] = set()

    async def start(self) -> None:
        if not self._input.is_dir():
            raise FileNotFoundError(f"no folder {self._input}")
        for folder in (self._archive, self._error):
            folder.mkdir(parents=True, exist_ok=True)
        self.spawn(periodic(self._heartbeat, HEARTBEAT), name="heartbeat")
        if self._watch:
            self.spawn(periodic(self._look, LOOK, at_once=True), name="look")
        await self._say("ComponentStarted", f"Component {self._id} started watching {self._input}", {})

    async def stop(self) -> None:
        await self._say("ComponentStopped", f"Component {self._id} shutting down", {})

    async def receive(self, message: Message) -> None:
        """A FileWatcherMessage: its file is processed, or was already. Another folder's file is none of ours."""
        name = message.content.get("fileName") if isinstance(message.content, dict) else None
        if message.type == "FileWatcherMessage" and name and Path(name).name == name:
            await self._process(name)

    async def _look(self) -> None:
        for name in sorted(await asyncio.to_thread(os.listdir, self._input)):
            if name not in self._busy:
                self.spawn(self._process(name), name=f"process {name}")

    async def _process(self, name: str) -> None:
        if name in self._busy or not (self._filter == "*.*" or fnmatch.fnmatch(name, self._filter)):
            return
        self._busy.add(name)
        try:
            if (seen := await self._complete(self._input / name)) is not None:
                await self._try(seen)
        finally:
            self._busy.discard(name)

    async def _try(self, seen: Seen) -> None:
        for attempt in range(1, self._retries + 2):
            try:
                await self._once(seen)
            except FileNotFoundError:
                return  # another replica was faster, or its owner took it away
            except Exception as error:  # noqa: BLE001 - whatever it was, it is tried again
                self.log.warning("processing %s failed, try %d of %d: %s", seen.path, attempt, self._retries + 1, error)
                if attempt > self._retries:
                    await self._give_up(seen, error)
                else:
                    await asyncio.sleep(self._delay)
            else:
                return

    async def _once(self, seen: Seen) -> None:
        text = await asyncio.to_thread(seen.path.read_text, encoding="utf-8")
        done = "\n".join(line.strip().upper() for line in text.splitlines())
        await self._say_of("FileProcessed", seen, done, {"ProcessedAt": datetime.now(UTC).isoformat()})
        await asyncio.to_thread(_move, seen.path, self._archive)

    async def _give_up(self, seen: Seen, error: Exception) -> None:
        reason = str(error) or type(error).__name__
        text = f"Failed to process file {seen.path.name} after {self._retries} retries"
        await self._say_of("FileProcessingError", seen, text, {"Error": reason})
        await asyncio.to_thread(_move, seen.path, self._error)

    async def _complete(self, path: Path) -> Seen | None:
        """The file once its size and time stand still, or after 30 s; None when it is gone or no file."""
        end = asyncio.get_running_loop().time() + COMPLETE_WITHIN
        before: Seen | None = None
        while (now := _seen(path)) is not None:
            if now == before or asyncio.get_running_loop().time() > end:
                return now
            before = now
            await asyncio.sleep(0.05)
        return None

    async def _heartbeat(self) -> None:
        stamp = datetime.now(UTC).isoformat()
        await self._say("Heartbeat", f"Component {self._id} heartbeat", {"State": str(self.state), "Timestamp": stamp})

    async def _say(self, kind: str, text: str, properties: dict[str, str]) -> None:
        told = {"InstanceId": self._id, **properties}
        await self._publisher.publish(Message(text, type=kind, source=self.name, properties=told))

    async def _say_of(self, kind: str, seen: Seen, text: str, properties: dict[str, str]) -> None:
        told = {"FileName": seen.path.name, "FilePath": str(seen.path), "InstanceId": self._id, **properties}
        id = derived_id(kind, seen.key)
        await self._publisher.publish(Message(text, type=kind, source=self.name, properties=told, id=id))


def _seen(path: Path) -> Seen | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    if not path.is_file() or path.is_symlink():
        return None
    return Seen(path, found.st_size, found.st_mtime_ns, found.st_ino)


def _move(path: Path, folder: Path) -> None:
    """The file is in the folder, under another name if there is one like it already."""
    target, number = folder / path.name, 1
    while target.exists():
        target, number = folder / f"{path.stem}.{number}{path.suffix}", number + 1
    path.rename(target)
