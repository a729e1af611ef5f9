"""How a component says it is: asked by its own host, in the rhythm its order gives; only a changed answer is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent.keeper.protocol import HostOrder
from agent.sdk.extension import Component, describe

NOT_ASKED = "not asked yet"
_EAGER = 0.1  # seconds before the next look at one that is not well; doubled until it is the order's interval


class Checkup:
    """The last answer of one component: `error` is empty while it is well, or while its order does not ask."""

    def __init__(self, component: Component, order: HostOrder, changed: Callable[[], None]) -> None:
        self._component, self._changed = component, changed
        self._interval, self._timeout = order.check_interval, order.check_timeout
        self._open = False
        self._task: asyncio.Task[object] | None = None
        self.error = NOT_ASKED if self._interval else ""

    def start(self) -> None:
        """The component is started and can be asked."""
        self._open = True
        self._ask_anew()

    def take(self, order: HostOrder) -> None:
        """This order's rhythm counts from now on."""
        rhythm = order.check_interval, order.check_timeout
        if rhythm == (self._interval, self._timeout):
            return
        if not self._interval:
            self.error = NOT_ASKED
        self._interval, self._timeout = rhythm
        if not self._interval:
            self.error = ""
        if self._open:
            self._ask_anew()

    def stop(self) -> None:
        """It is not asked any more."""
        self._open = False
        self._ask_anew()

    def _ask_anew(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self._open and self._interval:
            self._task = self._component.spawn(self._ask(), name="check")

    async def _ask(self) -> None:
        pause = _EAGER
        while True:
            error = await self._answer()
            if error != self.error:
                if error:
                    self._component.log.warning("not healthy: %s", error)
                elif self.error != NOT_ASKED:
                    self._component.log.info("healthy again")
                self.error = error
                self._changed()
            pause = min(pause * 2, self._interval) if error else self._interval
            await asyncio.sleep(pause)

    async def _answer(self) -> str:
        try:
            async with asyncio.timeout(self._timeout):
                await self._component.check()
        except TimeoutError as error:
            return str(error) or f"no answer in {self._timeout:g} s"
        except Exception as error:  # noqa: BLE001 - author code: whatever it raises is its answer
            return describe(error)
        return ""
