"""Publishes to the bus of the node: on disk at its agent before `publish` returns."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.bus.client import BusPublisher
from agent.errors import Missing
from agent.sdk import Message, MessagePublisher, Settings


class Bus(MessagePublisher):
    """Each message goes to the topic that the first fitting route names for its type, else to the usual topic."""

    def __init__(self, settings: Settings) -> None:
        self._topic = settings.text("topic")
        routes: list[Mapping[str, Any]] = settings.get("routes") or []
        self._routes: dict[str, str] = {}
        for route in routes:
            self._routes.setdefault(route["type"], route["topic"])
        self._bus: BusPublisher | None = None

    async def start(self) -> None:
        if not (path := os.environ.get("TDIE_BUS")):
            raise Missing("this host was started without a bus", code="BUS_MISSING", hint="its agent must be newer")
        self._bus = BusPublisher(Path(path))
        self.spawn(self._bus.run(), name="bus")

    async def publish(self, message: Message) -> None:
        if self._bus is None:
            raise Missing("the bus publisher is not started", code="BUS_MISSING")
        await self._bus.publish(message, self._routes.get(message.type, self._topic))
