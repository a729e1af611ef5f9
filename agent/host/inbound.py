"""Messages on their way to a component: one or a few at a time, from its publisher's transport or from the node's bus."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from agent.bus.client import consume
from agent.errors import Waiting
from agent.host.loading import CannotLoad
from agent.keeper.protocol import HostOrder
from agent.sdk.extension import Component, Deliver, MessagePublisher, describe
from agent.sdk.message import Message, Subscription, correlation
from agent.tasks import end_all

FINISHED_WITHIN = 5.0  # seconds a message that is being worked on has when its component is to stop
ACKNOWLEDGED_WITHIN = 0.2
ENDED_WITHIN = 2.0  # seconds what delivers has when it is cancelled

FromBus = Callable[[HostOrder, Deliver, int], Awaitable[None]]
"""Delivers from the node's bus what an order subscribes to, so many messages at once, until cancelled."""


class Inbound:
    """What an order subscribes to, flowing into its component from `start` until `stop`."""

    def __init__(
        self, order: HostOrder, component: Component, publisher: MessagePublisher | None, bus: FromBus | None
    ) -> None:
        """Raises CannotLoad when the component receives nothing, or there is nowhere to get messages from."""
        self._order, self._component = order, component
        self._publisher = publisher if publisher is not None and delivers(publisher) else None
        self._bus = bus
        self._parallel = max(1, component.parallel)
        self._turns = asyncio.Semaphore(self._parallel)
        self._busy: set[object] = set()
        self._idle = asyncio.Event()
        self._open = asyncio.Event()
        self._tasks: Sequence[asyncio.Task[Any]] = ()
        if order.subscriptions and type(component).receive is Component.receive:
            raise CannotLoad(
                f"{type(component).__name__} has no receive, and its instance subscribes", code="RECEIVE_MISSING"
            )
        if order.subscriptions and self._publisher is None and (bus is None or not order.bus):
            raise CannotLoad("this host has no bus to get messages from", code="BUS_MISSING")

    def start(self) -> None:
        """Messages begin to come. What delivers them belongs to the publisher, or else to the component."""
        self._open.set()
        if self._publisher is not None:
            self._tasks = [
                self._publisher.spawn(_unending(self._publisher.subscribe(wanted, self._deliver)), name="subscribe")
                for wanted in (Subscription(*said) for said in self._order.subscriptions)
            ]
        elif self._bus is not None and self._order.subscriptions:
            self._tasks = [
                self._component.spawn(
                    _unending(self._bus(self._order, self._deliver, self._parallel)), name="subscribe"
                )
            ]

    async def stop(self) -> None:
        """No message comes any more; what is being worked on is finished, or given back after 5 s."""
        busy = bool(self._busy)
        self._open.clear()
        try:
            async with asyncio.timeout(FINISHED_WITHIN):
                while self._busy:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            text = "%d message(s) are given back: they were not finished in %g s"
            self._component.log.warning(text, len(self._busy), FINISHED_WITHIN)
        if busy and self._tasks:
            await asyncio.wait(self._tasks, timeout=ACKNOWLEDGED_WITHIN)
        await end_all(self._tasks, ENDED_WITHIN)  # who does not end is told of when the one it belongs to is closed
        self._tasks = ()

    async def _deliver(self, message: Message) -> None:
        async with self._turns:
            if not self._open.is_set():
                raise Waiting("the component stops", code="STOPPING")
            before = correlation.set(message.correlation_id)
            mine = object()
            self._busy.add(mine)
            try:
                await self._component.receive(message)
            except Exception as error:
                self._component.log.warning(
                    "message %s of type %s is tried again: %s", message.id, message.type, describe(error)
                )
                raise
            finally:
                correlation.reset(before)
                self._busy.discard(mine)
                self._idle.set()


async def from_bus(order: HostOrder, deliver: Deliver, parallel: int) -> None:
    """Delivers from the bus of the node this host runs on."""
    await consume(Path(order.bus), deliver, parallel)


def delivers(publisher: MessagePublisher) -> bool:
    """Whether this publisher's transport brings messages too."""
    return type(publisher).subscribe is not MessagePublisher.subscribe


async def _unending(work: Awaitable[None]) -> None:
    """Runs until cancelled; a subscription that ends by itself is a failure like any other."""
    await work
    raise Waiting("the subscription ended", code="SUBSCRIPTION_ENDED")
