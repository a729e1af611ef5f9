"""A component that lives for a moment inside the zygote, so that its forks have nothing left to prepare."""

from __future__ import annotations

import asyncio
import logging
import os
import signal

from agent.sdk import Component, MessagePublisher, Settings


class Rehearsal(Component):
    """Uses what most components use, then asks its host to end as a keeper would."""

    def __init__(self, settings: Settings, publisher: MessagePublisher | None, log: logging.Logger) -> None:
        self._size = settings.integer("size", 1)
        self._publisher, self._log = publisher, log

    async def start(self) -> None:
        self._log.info("rehearsed", extra={"size": self._size})
        self.spawn(asyncio.sleep(60), name="wait")
        asyncio.get_running_loop().call_later(0.001, os.kill, os.getpid(), signal.SIGTERM)
