"""The one or two objects a host runs, and the order of their lives."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from agent.host.checkup import Checkup
from agent.host.inbound import FromBus, Inbound
from agent.host.injection import Services, construct
from agent.host.loading import load
from agent.keeper.protocol import Code, HostOrder
from agent.sdk.extension import Binding, Component, Deliver, Extension, MessagePublisher, ObjectState
from agent.sdk.lease import LeaseToken
from agent.sdk.message import Message, Subscription, correlation
from agent.sdk.settings import PublisherSettings, Settings
from agent.tasks import end_all

TASKS_END_WITHIN = 5.0


class Sourced(MessagePublisher):
    """A component's view of its publisher: messages without a source get the replica's name, those without a correlation
    id that of the message being received, or else the replica's."""

    def __init__(self, inner: MessagePublisher, order: HostOrder) -> None:
        self._inner, self._order = inner, order
        self._bound = inner._binding

    async def start(self) -> None:
        """The host starts the publisher itself."""

    async def publish(self, message: Message) -> None:
        if not message.source or not message.correlation_id:
            message = Message(
                content=message.content,
                type=message.type,
                source=message.source or self._order.replica,
                properties=message.properties,
                correlation_id=message.correlation_id or correlation.get() or self._order.correlation_id,
                id=message.id,
                timestamp=message.timestamp,
            )
        await self._inner.publish(message)

    async def subscribe(self, subscription: Subscription, deliver: Deliver) -> None:
        await self._inner.subscribe(subscription, deliver)


@dataclass(slots=True)
class Members:
    """Publisher and component of one configuration."""

    component: Component
    publisher: MessagePublisher | None
    inbound: Inbound | None = None
    checkup: Checkup | None = None
    closed: bool = False

    @property
    def in_start_order(self) -> tuple[Extension, ...]:
        return (self.component,) if self.publisher is None else (self.publisher, self.component)

    @property
    def healthy(self) -> bool:
        return not self.ailing and all(member.state is ObjectState.STARTED for member in self.in_start_order)

    @property
    def ailing(self) -> str:
        """What the component says is wrong with it; empty when it is well or not asked."""
        return self.checkup.error if self.checkup is not None else ""

    @property
    def failure(self) -> str:
        """Why a member is Errored; empty when none is."""
        return next((f"{member.cause}" for member in self.in_start_order if member.state is ObjectState.ERRORED), "")

    async def start(self) -> None:
        """Publisher and then component are Started, and then messages come; when one cannot, what was started is stopped
        and all is closed."""
        for member in self.in_start_order:
            if member.state is not ObjectState.STARTED:
                await self.start_one(member)

    async def start_one(self, member: Extension) -> None:
        """This member is Started; with the component messages come. When it cannot, all is rolled back."""
        try:
            member._move(ObjectState.STARTING)
            await member.start()
            if member.state is ObjectState.STARTING:
                member._move(ObjectState.STARTED)
        except BaseException as error:
            member.fail(error)
            await quietly(each for each in reversed(self.in_start_order) if each is not member)
            await self.close()
            raise
        if member is self.component:
            self._begin()

    def _begin(self) -> None:
        if self.inbound is not None:
            self.inbound.start()
        if self.checkup is not None:
            self.checkup.start()

    async def stop(self) -> None:
        """No message comes any more; component and then publisher are Stopped. The first error comes out once both were
        asked."""
        errors: list[Exception] = []
        for member in reversed(self.in_start_order):
            try:
                await self.stop_one(member)
            except Exception as error:  # noqa: BLE001 - author code
                errors.append(error)
        if errors:
            raise errors[0]

    async def stop_one(self, member: Extension) -> None:
        """This member is Stopped; before the component no message comes any more."""
        if member is self.component:
            if self.checkup is not None:
                self.checkup.stop()
            if self.inbound is not None:
                await self.inbound.stop()
        try:
            await _stop(member)
        except Exception as error:
            member.log.exception("stop failed")
            member.fail(error)
            raise

    async def close(self) -> None:
        """Both gave everything back, component first; once."""
        if self.closed:
            return
        self.closed = True
        for member in reversed(self.in_start_order):
            await close(member)


async def close(member: Extension) -> None:
    """The member gave everything back."""
    await _end_tasks(member)
    try:
        await member.close()
    except Exception:
        member.log.exception("close failed")
    if member.state is not ObjectState.ERRORED:
        member._move(ObjectState.DESTROYED)


async def quietly(members: Iterable[Extension]) -> None:
    """These are stopped if they run; what they raise is only logged."""
    for member in members:
        try:
            await _stop(member)
        except Exception:
            member.log.exception("stop failed")


async def _stop(member: Extension) -> None:
    if member.state not in (ObjectState.STARTED, ObjectState.ERRORED, ObjectState.STARTING):
        return
    errored = member.state is ObjectState.ERRORED
    if not errored:
        member._move(ObjectState.STOPPING)
    try:
        await member.stop()
    finally:
        await _end_tasks(member)
    if not errored:
        member._move(ObjectState.STOPPED)


async def _end_tasks(member: Extension) -> None:
    tasks = [task for task in member._binding.tasks if task is not asyncio.current_task()]
    for task in await end_all(tasks, TASKS_END_WITHIN):
        member.log.warning("%s does not end when cancelled", task.get_name())


def make(
    order: HostOrder,
    changed: Callable[[], None],
    bus: FromBus | None = None,
    publisher: MessagePublisher | None = None,
) -> Members:
    """Loaded and constructed members of an order; `changed` is called whenever one of their states changes.

    `bus` delivers from the node's bus; a `publisher` that was made already is used as it is.
    """
    publisher = publisher or make_publisher(order, changed)
    own = (
        PublisherSettings(order.publisher.settings, _name(order.publisher)) if order.publisher else PublisherSettings()
    )
    binding = _binding(order, order.component, Settings, changed, "component")
    sourced = Sourced(publisher, order) if publisher is not None else None
    component = construct(
        load(order.component, Component),  # type: ignore[type-abstract]
        Services(binding, sourced, own),
    )
    assert isinstance(component, Component)
    inbound = Inbound(order, component, publisher, bus)
    return Members(component, publisher, inbound, Checkup(component, order, changed))


def make_publisher(order: HostOrder, changed: Callable[[], None]) -> MessagePublisher | None:
    """The loaded and constructed publisher of an order, if it has one."""
    if order.publisher is None:
        return None
    binding = _binding(order, order.publisher, PublisherSettings, changed, "publisher")
    assert isinstance(binding.settings, PublisherSettings)
    made = construct(
        load(order.publisher, MessagePublisher),  # type: ignore[type-abstract]
        Services(binding, None, binding.settings),
    )
    assert isinstance(made, MessagePublisher)
    return made


def _binding(order: HostOrder, code: Code, kind: type[Settings], changed: Callable[[], None], logger: str) -> Binding:
    return Binding(
        name=order.replica,
        settings=kind(code.settings, _name(code)),
        log=logging.getLogger(f"{logger}.{code.name}" if code.name else logger),
        changed=changed,
        data=order.data,
        lease=token(order),
    )


def token(order: HostOrder) -> LeaseToken | None:
    """The token of the order's lease."""
    return LeaseToken(order.lease.epoch, order.lease.index) if order.lease else None


def _name(code: Code) -> str:
    return f"{code.name}@{code.version}"
