"""A host's process from its first to its last moment."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Sequence
from typing import Any

from agent.host import logs
from agent.host.first_call import serve_on_first_call
from agent.host.host import Host
from agent.host.states import HostState
from agent.host.uplink import Uplink
from agent.keeper import codec, linux, resources
from agent.keeper.protocol import HostOrder

ERRORED = 70  # exit status: the cause was told
log = logging.getLogger("host")


def run(
    order: HostOrder,
    channel: socket.socket,
    keeper: str,
    listener: socket.socket | None = None,
    first: Sequence[dict[str, Any]] = (),
) -> None:
    """Run the replica until it is stopped (returns) or cannot go on (SystemExit 70)."""
    lines = logs.set_up(order)
    os.chdir(order.component.content_root if os.path.isdir(order.component.content_root) else "/")
    state = asyncio.run(_Run(order, channel, keeper, listener, lines).until_the_end(first))
    if state is HostState.ERRORED:
        raise SystemExit(ERRORED)


class _Run:
    def __init__(
        self,
        order: HostOrder,
        channel: socket.socket,
        keeper: str,
        listener: socket.socket | None,
        lines: logs.JsonLines,
    ) -> None:
        self._host = Host(order, self._told)
        self._uplink = Uplink(channel, keeper, lambda: self._host.order)
        self._listener, self._lines, self._keeper = listener, lines, keeper
        self._asked = asyncio.Event()
        self._over = asyncio.Event()

    async def until_the_end(self, first: Sequence[dict[str, Any]]) -> HostState:
        """The state the host ended in: Destroyed or Errored."""
        loop = asyncio.get_running_loop()
        # Not the loop's own way, which first looks up every signal there is: 0.5 ms, and pages that could stay shared.
        signal.signal(signal.SIGTERM, lambda *_: loop.call_soon_threadsafe(self._asked.set))
        signal.signal(signal.SIGINT, lambda *_: None)
        async with asyncio.TaskGroup() as tasks:
            beginning = tasks.create_task(self._begin(), name="begin")
            owned = [
                beginning,
                tasks.create_task(self._listen(first), name="uplink"),
                tasks.create_task(self._host.watch(), name="watch"),
            ]
            if self._listener is not None:
                api = serve_on_first_call(self._host, self._listener, self._asked.set, self._keeper)
                owned.append(tasks.create_task(api, name="api"))
            ending = tasks.create_task(self._end_when_asked(beginning), name="end")
            await self._over.wait()
            await self._uplink.flush()
            for task in (*owned, ending):
                task.cancel()
        return self._host.state

    async def _begin(self) -> None:
        if self._host.order.awaiting:
            self._told()
            return
        try:
            await self._host.start()
        except Exception as error:  # noqa: BLE001 - author code
            log.debug("not started: %s", error)  # told as the host's cause already

    async def _end_when_asked(self, beginning: asyncio.Task[None]) -> None:
        await self._asked.wait()
        beginning.cancel()  # a start that still waits for something is rolled back
        await self._host.destroy()
        self._over.set()

    async def _listen(self, first: Sequence[dict[str, Any]]) -> None:
        for request in first:
            await self._obey(request)
        async for request in self._uplink.requests():
            await self._obey(request)

    async def _obey(self, request: dict[str, Any]) -> None:
        match request.get("do"):
            case "stop":
                self._asked.set()
            case "adjust":
                self._adjust(codec.order_from(request["order"]))
            case "reconfigure":
                order = codec.order_from(request["order"])
                self._lines.order = order
                try:
                    await self._host.reconfigure(order)
                except Exception as error:  # noqa: BLE001 - author code, told as the cause
                    log.debug("not reconfigured: %s", error)
            case other:
                if "error" in request:
                    log.warning("the keeper refuses this host: %s", request["error"])
                elif other is not None:
                    log.warning("the keeper asks for %r, which this host does not know", other)

    def _adjust(self, order: HostOrder) -> None:
        before = self._host.order.log
        self._lines.order = order
        linux.die_with_parent(order.lease is not None)  # a lease may come and go while the process stays
        if order.log != before:
            descriptor = resources.open_log(order.log)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            os.close(descriptor)
        self._host.adjust(order)

    def _told(self) -> None:
        self._uplink.tell(self._host.status())
        if self._host.state is HostState.ERRORED and not self._host.order.awaiting:
            self._over.set()
