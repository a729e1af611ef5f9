"""The objects of a host as they come and go: made, made anew, remembered when they are gone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from agent.host.inbound import from_bus
from agent.host.members import Members, close, make, make_publisher, quietly
from agent.keeper.protocol import HostOrder
from agent.sdk.extension import Extension, Failure, MessagePublisher, ObjectState, describe

log = logging.getLogger("host")


class Role(StrEnum):
    """The two parts an object can play."""

    PUBLISHER = "publisher"
    COMPONENT = "component"


@dataclass(frozen=True, slots=True)
class Seen:
    """How the object in a role is, or was last; None when there never was one."""

    state: ObjectState | None = None
    failure: Failure | None = None


class Objects:
    """At most one publisher and one component; each object is started once, and made anew for the next time."""

    def __init__(self, changed: Callable[[], None]) -> None:
        """`changed` is called whenever the state of one changes."""
        self._changed = changed
        self._before: dict[Role, Seen] = {}
        self.members: Members | None = None
        self.early: MessagePublisher | None = None  # set up while the component is not

    def get(self, role: Role) -> Extension | None:
        """The object in this role now."""
        if role is Role.COMPONENT:
            return self.members.component if self.members else None
        return self.members.publisher if self.members else self.early

    def running(self, role: Role) -> bool:
        """Whether there is one, and it is started."""
        member = self.get(role)
        return member is not None and member.state is ObjectState.STARTED

    def seen(self, role: Role) -> Seen:
        """How the object in this role is; of one that is gone, how it was last."""
        member = self.get(role)
        return Seen(member.state, member._binding.failure) if member else self._before.get(role, Seen())

    def failure(self) -> Failure | None:
        """Why one of them is Errored."""
        return next((seen.failure for role in Role if self.get(role) and (seen := self.seen(role)).failure), None)

    async def make(self, order: HostOrder) -> None:
        """Both are new."""
        await self.drop()
        self.members = make(order, self._changed, from_bus)
        self._before.clear()

    async def make_publisher(self, order: HostOrder) -> None:
        """There is a new publisher, and no component yet."""
        await self.drop()
        self.early = make_publisher(order, self._changed)
        self._before.clear()

    async def make_component(self, order: HostOrder) -> None:
        """The component is new; the publisher stays as it is."""
        members, self.members = self.members, None
        if members is not None:
            members.closed = True  # its publisher lives on
            self.early = members.publisher
            await close(members.component)
        self.members = make(order, self._changed, from_bus, self.early)
        self.early = None
        self._before.clear()

    async def refresh(self, order: HostOrder) -> None:
        """What was stopped is made anew."""
        if self.seen(Role.PUBLISHER).state is ObjectState.STOPPED:
            await self.make(order)
        elif self.seen(Role.COMPONENT).state is ObjectState.STOPPED:
            await self.make_component(order)

    async def drop(self) -> None:
        """Both are gone, stopped before if they ran; how they were last is remembered."""
        self._before |= {role: self.seen(role) for role in Role if self.get(role)}
        early, self.early = self.early, None
        members, self.members = self.members, None
        if early is not None:
            await quietly([early])
            await close(early)
        if members is None:
            return
        if not members.closed:
            try:
                await members.stop()
            except Exception as error:  # noqa: BLE001 - author code; the first cause is what counts
                log.warning("stopping failed too: %s", describe(error))
        await members.close()
