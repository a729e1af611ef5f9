"""PUBLIC: run a component or a publisher in a unit test, without agent, keeper or host process.

    from agent.sdk.testing import running

    async def test_greets() -> None:
        async with running(Greeter, {"name": "you"}) as greeter:
            message = await greeter.message("Greeting")
            assert message.content == "Hello, you"

What runs it is the host's own code: the same injection, the same order of start, stop and close, the same rules for tasks.
Instead of a class, the folder of a package can be named: its manifest then says which class and which default settings.
"""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar, cast

from agent.host.injection import Services, construct
from agent.host.loading import load
from agent.host.members import Members, Sourced
from agent.keeper.protocol import Code, HostOrder
from agent.sdk.extension import Binding, Component, Extension, MessagePublisher, ObjectState
from agent.sdk.message import Message, correlation
from agent.sdk.settings import PublisherSettings, Settings

WITHIN = 10.0  # seconds that a test waits for something that should happen
ENDS_WITHIN = 1.0  # seconds in which what was started must be gone after close
E = TypeVar("E", bound=Extension)


class Collected(MessagePublisher):
    """Keeps what was published; `refuse` makes the next ones fail."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._refusals: list[Exception] = []
        self._changed = asyncio.Event()

    async def start(self) -> None:
        """Nothing to do."""

    async def publish(self, message: Message) -> None:
        message.to_json()  # what is no JSON would fail with every real publisher too
        if self._refusals:
            raise self._refusals.pop(0)
        self.messages.append(message)
        self._changed.set()

    def refuse(self, error: Exception, times: int = 1) -> None:
        """The next `times` messages are refused with this error."""
        self._refusals += [error] * times

    async def changed(self) -> None:
        """Returns when another message came."""
        self._changed.clear()
        await self._changed.wait()


class Running:
    """A component at work, and what it said."""

    def __init__(self, component: Component, publisher: Collected, tasks: _Tasks) -> None:
        self.component, self.publisher = component, publisher
        self._tasks = tasks
        self._taken = 0

    @property
    def published(self) -> list[Message]:
        """Everything it published so far, oldest first."""
        return self.publisher.messages

    @property
    def state(self) -> ObjectState:
        return self.component.state

    @property
    def cause(self) -> str:
        """Why it is Errored; empty otherwise."""
        return self.component.cause

    async def message(self, kind: str | None = None, within: float = WITHIN) -> Message:
        """The next message not yet asked for, of this type if one is given (others before it are passed over)."""
        try:
            async with asyncio.timeout(within):
                while True:
                    while self._taken < len(self.published):
                        self._taken += 1
                        if kind is None or self.published[self._taken - 1].type == kind:
                            return self.published[self._taken - 1]
                    await self.publisher.changed()
        except TimeoutError:
            said = [message.type for message in self.published]
            raise AssertionError(f"no message {kind or ''} within {within:g} s; {self._how()}, said: {said}") from None

    async def until(self, condition: Callable[[], object], within: float = WITHIN) -> None:
        """Returns once the condition holds; AssertionError says how the component stands when it does not in time."""
        await until(condition, within, self._how)

    async def deliver(self, message: Message) -> None:
        """The component received the message; what it raised comes out, as a host would have it tried again."""
        before = correlation.set(message.correlation_id)
        try:
            with self._tasks.owning():
                await self.component.receive(message)
        finally:
            correlation.reset(before)

    def _how(self) -> str:
        return f"it is {self.state}{f' ({self.cause})' if self.cause else ''}"


@asynccontextmanager
async def running(
    what: type[Component] | Path,
    settings: Mapping[str, Any] | None = None,
    *,
    name: str = "test.0",
    data: Path | None = None,
    **given: object,
) -> AsyncIterator[Running]:
    """A started component; stopped and closed at the end, when no task of it may be left.

    `what` is a class or the folder of a package; `data` its folder on the node, a temporary one when none is given; `given`
    are further constructor arguments, such as a clock. An error of `start` comes out after the roll-back that a host makes.
    """
    found, values, label = _found(what, Component, settings)  # type: ignore[type-abstract]
    collected = Collected()
    order = HostOrder(name, name.partition(".")[0], "test", "", "python", Code(label, "", "", "/"))
    with tempfile.TemporaryDirectory(prefix="tdie-test-") as folder:
        services = _services(name, Settings(values, label), Sourced(collected, order), data or Path(folder))
        component = construct(found, services, **given)
        assert isinstance(component, Component)
        tasks = _Tasks()
        async with _life(Members(component, collected), tasks):
            yield Running(component, collected, tasks)


@asynccontextmanager
async def publishing(
    what: type[MessagePublisher] | Path,
    settings: Mapping[str, Any] | None = None,
    *,
    name: str = "test.0",
    data: Path | None = None,
    **given: object,
) -> AsyncIterator[MessagePublisher]:
    """A started publisher; stopped and closed at the end, when no task of it may be left."""
    found, values, label = _found(what, MessagePublisher, settings)  # type: ignore[type-abstract]
    own = PublisherSettings(values, label)
    with tempfile.TemporaryDirectory(prefix="tdie-test-") as folder:
        publisher = construct(found, _services(name, own, None, data or Path(folder)), **given)
        assert isinstance(publisher, MessagePublisher)
        async with _life(Members(_Nothing(), publisher), _Tasks()):
            yield publisher


async def until(condition: Callable[[], object], within: float = WITHIN, how: Callable[[], str] = lambda: "") -> None:
    """Returns once the condition holds; else AssertionError, with what `how` says."""
    try:
        async with asyncio.timeout(within):
            while not condition():
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"not within {within:g} s; {how()}".rstrip("; ")) from None


class _Nothing(Component):
    """The component beside a publisher that is tested alone."""

    async def start(self) -> None:
        """Nothing to do."""


@asynccontextmanager
async def _life(members: Members, tasks: _Tasks) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    factory = loop.get_task_factory()
    loop.set_task_factory(_counting)
    try:
        with tasks.owning():
            await members.start()
        try:
            yield
        finally:
            with tasks.owning():
                await _end(members)
        await tasks.over()
    finally:
        loop.set_task_factory(factory)


async def _end(members: Members) -> None:
    try:
        await members.stop()
    finally:
        await members.close()


class _Tasks:
    """The tasks that one component began, also those that its tasks began."""

    def __init__(self) -> None:
        self.begun: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()

    @contextmanager
    def owning(self) -> Iterator[None]:
        """What is begun from here belongs to it."""
        before = _OWNER.set(self)
        try:
            yield
        finally:
            _OWNER.reset(before)

    async def over(self) -> None:
        """Every task is done; one that a component leaves behind would be left in its host too."""
        end = asyncio.get_running_loop().time() + ENDS_WITHIN
        while left := [task.get_name() for task in self.begun if not task.done()]:
            if asyncio.get_running_loop().time() > end:
                raise AssertionError(f"tasks left behind after close: {', '.join(sorted(left))}")
            await asyncio.sleep(0.005)


_OWNER: ContextVar[_Tasks | None] = ContextVar("tdie_owner", default=None)


def _counting(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> asyncio.Task[Any]:
    task = asyncio.Task(work, loop=loop, **options)
    if (owner := _OWNER.get()) is not None:
        owner.begun.add(task)
    return task


def _found(
    what: type[E] | Path, base: type[E], settings: Mapping[str, Any] | None
) -> tuple[type[E], dict[str, Any], str]:
    """Class, settings over the package's defaults, and what errors call it."""
    if not isinstance(what, Path):
        return what, dict(settings or {}), what.__name__
    manifest = json.loads((what / "manifest.json").read_text())
    root = str((what / manifest.get("contentRoot", ".")).resolve())
    code = Code(manifest["name"], manifest["version"], "", root, manifest["componentType"])
    found = cast(type[E], load(code, base))  # load has checked it
    values = {**manifest.get("defaultConfiguration", {}), **(settings or {})}
    return found, values, f"{code.name}@{code.version}"


def _services(name: str, settings: Settings, publisher: MessagePublisher | None, data: Path) -> Services:
    binding = Binding(name=name, settings=settings, log=logging.getLogger(f"component.{name}"), data=str(data))
    return Services(binding, publisher, PublisherSettings())
