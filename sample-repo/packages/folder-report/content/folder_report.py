"""A component of our own: it says now and then how many files wait in a folder."""

from __future__ import annotations

import asyncio
from pathlib import Path

from agent.sdk import Component, Message, MessagePublisher, Settings, periodic


class FolderReport(Component):
    """Publishes a FolderReport message every `every` seconds."""

    def __init__(self, settings: Settings, publisher: MessagePublisher) -> None:
        self._folder = settings.path("folder")
        self._every = settings.number("every")
        self._publisher = publisher

    async def start(self) -> None:
        if not self._folder.is_dir():
            raise FileNotFoundError(f"no folder {self._folder}")
        self.spawn(periodic(self._report, self._every), name="report")

    async def _report(self) -> None:
        count, size = await asyncio.to_thread(_measure, self._folder)
        self.log.info("%s holds %d file(s), %d byte(s)", self._folder, count, size)
        found = {"files": str(count), "bytes": str(size)}
        await self._publisher.publish(Message(type="FolderReport", content=f"{count} files", properties=found))


def _measure(folder: Path) -> tuple[int, int]:
    """How many files are in the folder, and how many bytes they hold."""
    sizes = [entry.stat().st_size for entry in folder.iterdir() if entry.is_file()]
    return len(sizes), sum(sizes)
