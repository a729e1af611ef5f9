"""The component host: its state, and the calls that change it one at a time."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from agent.errors import TdieError
from agent.host.loading import CannotLoad
from agent.host.members import Members, quietly, token
from agent.host.objects import Objects, Role
from agent.host.states import Call, HostState, WrongState, after
from agent.keeper import codec
from agent.keeper.protocol import Code, HostOrder
from agent.sdk.errors import SettingsError
from agent.sdk.extension import Failure, ObjectState

log = logging.getLogger("host")


class Host:
    """One replica's component and publisher. `told` is called whenever what `status` says changes."""

    def __init__(self, order: HostOrder, told: Callable[[], None]) -> None:
        self.order, self._told = order, told
        self.state = HostState.AWAITING_CONFIGURATION
        self.failure: Failure | None = None
        self.final = False  # the cause will be there again, however often it is tried
        self.objects = Objects(self._member_changed)
        self.ended = asyncio.Event()
        self._set_up = not order.awaiting  # whether it is known which component runs here
        self._by_hand = False  # people set it up: the keeper hears what runs
        self._halted = False  # the component was stopped alone, the publisher runs
        self._turn = asyncio.Lock()
        self._busy = False
        self._failing = asyncio.Event()

    @property
    def cause(self) -> str:
        """Why it is Errored, in one line; empty otherwise."""
        return self.failure.detail if self.failure else ""

    @property
    def members(self) -> Members | None:
        """Publisher and component, once both are set up."""
        return self.objects.members

    def status(self) -> dict[str, Any]:
        """What the keeper is told."""
        members = self.members
        return {
            "replica": self.order.replica,
            "spec_hash": self.order.spec_hash,
            "state": self.state,
            "healthy": self.state is HostState.STARTED and members is not None and members.healthy,
            "ailing": f"health check: {members.ailing}" if members is not None and members.ailing else "",
            "cause": self.cause,
            "final": self.final,
            "halted": self._halted,
            **({"order": json.loads(codec.order_text(self.order))} if self._by_hand else {}),
        }

    # ------------------------------------------------------------------ all of it

    async def start(self) -> None:
        """Configured and Started; else Errored, everything rolled back, and the error comes out."""
        async with self._turn:
            if not self._set_up:
                raise WrongState(f"start is not possible in state {self.state}; allowed: configure, destroy")
            if self.state is not HostState.CONFIGURED and not self._halted:
                after(self.state, Call.CONFIGURE)  # not possible while Started
                await self._attempt(self._configure)
            await self._attempt(self._start)

    async def stop(self) -> None:
        """Stopped: the component first, then its publisher."""
        async with self._turn:
            await self._stop()

    async def reconfigure(self, order: HostOrder) -> None:
        """The same process runs this order; when it cannot, the host is Errored and the error comes out."""
        async with self._turn:
            if self.state is HostState.STARTED or self._halted:
                await self._stop()
            self.order = order
            await self._attempt(self._configure)
            await self._attempt(self._start)

    def adjust(self, order: HostOrder) -> None:
        """What of this order is policy counts from now on; what runs is not touched."""
        self.order = order
        for role in Role:
            if (member := self.objects.get(role)) is not None:
                member._binding.lease = token(order)
        if self.members is not None and self.members.checkup is not None:
            self.members.checkup.take(order)
        self._told()

    async def destroy(self) -> None:
        """Destroyed: stopped if it was running, and everything given back."""
        async with self._turn:
            if self.state is HostState.DESTROYED:
                return
            try:
                if self.state is HostState.STARTED:
                    await self._stop()
            except Exception as error:  # noqa: BLE001 - author code; the host ends anyway
                self.failure = Failure.of(error)
            await self._drop()
            self._move(Call.DESTROY)
            self.ended.set()

    async def watch(self) -> None:
        """A member that turns Errored after the start makes the host Errored, with everything stopped."""
        while True:
            await self._failing.wait()
            async with self._turn:
                self._failing.clear()
                if self.members is not None and (failure := self.objects.failure()) is not None:
                    log.error("the replica failed: %s", failure.detail)
                    self.failure = failure
                    await self._drop()
                    self._move(Call.FAIL)

    # ------------------------------------------------------------------ one part of it

    async def init(self, role: Role, code: Code | None = None) -> None:
        """The object in this role is new, made of `code` or else of what it was made of before; nothing of it may run."""
        async with self._turn:
            after(self.state, Call.CONFIGURE)
            if self.objects.running(role):
                raise WrongState(f"the {role} is Started", code="MEMBER_RUNNING", hint=f"stop the {role} first")
            before, self.order = self.order, self._with(role, code)
            try:
                await self._attempt(lambda: self._init(role))
            except BaseException:
                self.order = before
                self._told()
                raise

    async def start_member(self, role: Role) -> None:
        """This part is Started; the component only after its publisher."""
        async with self._turn:
            after(self.state, Call.START)
            if self.objects.running(role):
                raise WrongState(f"the {role} is Started already", code="MEMBER_RUNNING")
            if self.objects.get(role) is None:
                raise WrongState(f"this host has no {role}", code="MEMBER_MISSING")
            publisher = self.objects.get(Role.PUBLISHER)
            if role is Role.COMPONENT and publisher is not None and not self.objects.running(Role.PUBLISHER):
                raise WrongState("its publisher is not Started", code="PUBLISHER_NOT_STARTED", hint="start it first")
            await self._attempt(lambda: self._start_member(role))

    async def stop_member(self, role: Role) -> None:
        """This part is Stopped; the publisher only after the component."""
        async with self._turn:
            member = self.objects.get(role)
            if member is None or self.members is None or not self.objects.running(role):
                raise WrongState(f"the {role} is not Started", code="MEMBER_NOT_RUNNING")
            if role is Role.PUBLISHER and self.objects.running(Role.COMPONENT):
                raise WrongState("the component is Started", code="MEMBER_RUNNING", hint="stop the component first")
            if self.state is HostState.CONFIGURED:  # it never was Started as a whole
                await self._guarded(self.members.stop_one(member))
            elif role is Role.COMPONENT and self.objects.running(Role.PUBLISHER):
                self._move(Call.STOP)
                await self._guarded(self.members.stop_one(member))
                self._halted = True
                self._told()
            else:
                await self._stop()

    def _with(self, role: Role, code: Code | None) -> HostOrder:
        if code is None:
            return self.order
        self._by_hand = True
        if role is Role.COMPONENT:
            return replace(self.order, component=code, awaiting=True)
        return replace(self.order, publisher=code, awaiting=True)

    async def _init(self, role: Role) -> None:
        known = self._set_up or role is Role.COMPONENT
        target = after(self.state, Call.CONFIGURE if known else Call.AWAIT)
        if role is Role.COMPONENT:
            await self.objects.make_component(self.order)
        elif known:
            await self.objects.make(self.order)
        else:
            await self.objects.make_publisher(self.order)
        self._set_up = known
        self._configured(target)

    async def _start_member(self, role: Role) -> None:
        await self.objects.refresh(self.order)
        member = self.objects.get(role)
        assert self.members is not None
        assert member is not None
        await self.members.start_one(member)
        if self.members.healthy or all(self.objects.running(r) for r in Role if self.objects.get(r)):
            self._all_started()

    # ------------------------------------------------------------------ what both do

    async def _configure(self) -> None:
        target = after(self.state, Call.CONFIGURE)
        await self.objects.make(self.order)
        self._configured(target)

    def _configured(self, state: HostState) -> None:
        self.state, self.failure, self.final, self._halted = state, None, False, False
        self._told()

    async def _start(self) -> None:
        after(self.state, Call.START)
        await self.objects.refresh(self.order)
        assert self.members is not None
        await self.members.start()
        self._all_started()

    def _all_started(self) -> None:
        assert self.members is not None
        if self.members.failure:
            raise CannotLoad(self.members.failure, code="START_FAILED")
        self._halted = False
        if self._by_hand:  # from now on it is a host like any other: what fails is started again as it is
            self.order = replace(self.order, awaiting=False)
        self._move(Call.START)

    async def _stop(self) -> None:
        self._move(Call.STOP)
        assert self.members is not None
        await self._guarded(self.members.stop())
        await self._drop()
        self._move(Call.STOPPED)

    async def _guarded(self, stopping: Awaitable[None]) -> None:
        try:
            await stopping
        except Exception as error:
            self.failure = Failure.of(error)
            assert self.members is not None
            running = (m for m in reversed(self.members.in_start_order) if m.state is ObjectState.STARTED)
            await quietly(running)
            await self.members.close()
            await self._drop()
            self._move(Call.FAIL)
            raise

    async def _attempt(self, step: Callable[[], Awaitable[None]]) -> None:
        self._busy = True
        try:
            await step()
        except Exception as error:
            self.failure = Failure.of(error)
            self.final = isinstance(error, CannotLoad | SettingsError) and getattr(error, "code", "") != "START_FAILED"
            log.error("cannot run: %s", self.cause, exc_info=None if isinstance(error, TdieError) else error)
            await self._drop()
            self._move(Call.FAIL)
            raise
        finally:
            self._busy = False

    async def _drop(self) -> None:
        self._halted = False
        await self.objects.drop()

    def _member_changed(self) -> None:
        if not self._busy and self.members is not None and self.members.failure:
            self._failing.set()
        if not self._busy:
            self._told()

    def _move(self, call: Call) -> None:
        self.state = after(self.state, call)
        self._told()
