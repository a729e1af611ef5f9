"""The component host: its state, and the calls that change it one at a time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from agent.errors import TdieError
from agent.host.inbound import from_bus
from agent.host.loading import CannotLoad
from agent.host.members import Members, make
from agent.host.states import Call, HostState, after
from agent.keeper.protocol import HostOrder
from agent.sdk.errors import SettingsError
from agent.sdk.extension import describe

log = logging.getLogger("host")


class Host:
    """One replica's component and publisher. `told` is called whenever what `status` says changes."""

    def __init__(self, order: HostOrder, told: Callable[[], None]) -> None:
        self.order, self._told = order, told
        self.state = HostState.AWAITING_CONFIGURATION
        self.cause = ""
        self.final = False  # the cause will be there again, however often it is tried
        self.members: Members | None = None
        self.ended = asyncio.Event()
        self._turn = asyncio.Lock()
        self._busy = False
        self._failing = asyncio.Event()

    def status(self) -> dict[str, Any]:
        """What keeper and API are told."""
        members = self.members
        return {
            "replica": self.order.replica,
            "spec_hash": self.order.spec_hash,
            "state": self.state,
            "healthy": self.state is HostState.STARTED and members is not None and members.healthy,
            "component": members.component.state if members else None,
            "publisher": members.publisher.state if members and members.publisher else None,
            "ailing": f"health check: {members.ailing}" if members is not None and members.ailing else "",
            "cause": self.cause,
            "final": self.final,
        }

    async def start(self) -> None:
        """Configured and Started; else Errored, everything rolled back, and the error comes out."""
        async with self._turn:
            if self.state is not HostState.CONFIGURED:
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
            if self.state is HostState.STARTED:
                await self._stop()
            self.order = order
            await self._attempt(self._configure)
            await self._attempt(self._start)

    def adjust(self, order: HostOrder) -> None:
        """What of this order is policy counts from now on; what runs is not touched."""
        self.order = order
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
                self.cause = describe(error)
            await self._drop()
            self._move(Call.DESTROY)
            self.ended.set()

    async def watch(self) -> None:
        """A member that turns Errored after the start makes the host Errored, with everything stopped."""
        while True:
            await self._failing.wait()
            async with self._turn:
                self._failing.clear()
                if self.state is HostState.STARTED and self.members is not None and (cause := self.members.failure):
                    log.error("the replica failed: %s", cause)
                    self.cause = cause
                    await self._drop(stop=True)
                    self._move(Call.FAIL)

    async def _configure(self) -> None:
        target = after(self.state, Call.CONFIGURE)
        await self._drop()
        self.members = make(self.order, self._member_changed, from_bus)
        self.state, self.cause, self.final = target, "", False
        self._told()

    async def _start(self) -> None:
        after(self.state, Call.START)
        assert self.members is not None
        await self.members.start()
        if self.members.failure:
            raise CannotLoad(self.members.failure, code="START_FAILED")
        self._move(Call.START)

    async def _stop(self) -> None:
        self._move(Call.STOP)
        assert self.members is not None
        try:
            await self.members.stop()
        except Exception as error:
            self.cause = describe(error)
            await self._drop()
            self._move(Call.FAIL)
            raise
        await self._drop()
        self._move(Call.STOPPED)

    async def _attempt(self, step: Callable[[], Any]) -> None:
        self._busy = True
        try:
            await step()
        except Exception as error:
            self.cause = describe(error)
            self.final = isinstance(error, CannotLoad | SettingsError) and getattr(error, "code", "") != "START_FAILED"
            log.error("cannot run: %s", self.cause, exc_info=None if isinstance(error, TdieError) else error)
            await self._drop()
            self._move(Call.FAIL)
            raise
        finally:
            self._busy = False

    async def _drop(self, *, stop: bool = False) -> None:
        members, self.members = self.members, None
        if members is None:
            return
        if stop:
            try:
                await members.stop()
            except Exception as error:  # noqa: BLE001 - author code; the first cause is what counts
                log.warning("stopping failed too: %s", describe(error))
        await members.close()

    def _member_changed(self) -> None:
        if self.members is not None and self.state is HostState.STARTED and self.members.failure:
            self._failing.set()
        if not self._busy:
            self._told()

    def _move(self, call: Call) -> None:
        self.state = after(self.state, call)
        self._told()
