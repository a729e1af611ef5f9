"""Logs every message, and appends it to a file."""

from __future__ import annotations

import asyncio
import logging
import os

from agent.sdk import Message, MessagePublisher, Settings


class BasicPublisher(MessagePublisher):
    """A message is published when it is in the log, and in the file if one is named."""

    def __init__(self, settings: Settings, log: logging.Logger) -> None:
        self._path = settings.path("file", None)
        self._log = log
        self._file: int | None = None
        self._turn = asyncio.Lock()

    async def start(self) -> None:
        if self._path is not None:
            self._file = await asyncio.to_thread(_open, str(self._path))

    async def publish(self, message: Message) -> None:
        line = message.to_json()
        if self._file is not None:
            async with self._turn:
                await asyncio.to_thread(_write, self._file, f"{line}\n".encode())
        self._log.info("message", extra={"published": message.to_dict()})

    async def close(self) -> None:
        if self._file is not None:
            descriptor, self._file = self._file, None
            os.close(descriptor)


def _open(path: str) -> int:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
