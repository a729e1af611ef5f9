"""Base of everything a host runs: a name, an instance id, a state, and the three calls of a life: start, stop, close."""

from __future__ import annotations

import asyncio
import logging
import uuid
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, NewType, TypeAlias

from agent.errors import Missing, Refused
from agent.sdk.lease import LeaseToken
from agent.sdk.message import Message, Subscription
from agent.sdk.settings import Settings

InstanceId = NewType("InstanceId", str)
"""32 hex digits that name one life of one extension object; annotate a constructor parameter with it to get it."""

Deliver: TypeAlias = Callable[[Message], Awaitable[None]]
"""Hands one message to the component; it is done when this returns, and comes again when it raises."""


class ObjectState(StrEnum):
    """Where a component or publisher is in its life."""

    INITIALIZED = "Initialized"
    STARTING = "Starting"
    STARTED = "Started"
    STOPPING = "Stopping"
    STOPPED = "Stopped"
    ERRORED = "Errored"
    DESTROYED = "Destroyed"


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong with a host or one of its objects: a stable code, one line for people, and when."""

    code: str
    detail: str
    at: str

    @classmethod
    def of(cls, cause: BaseException | str) -> Failure:
        """The failure that an error, or a sentence of the object itself, tells; now."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if isinstance(cause, str):
            return cls("FAILED", cause, now)
        return cls(str(getattr(cause, "code", type(cause).__name__)), describe(cause), now)


@dataclass(slots=True)
class Binding:
    """What a host knows about one extension object; made before the constructor runs, so that authors need no super()."""

    name: str = ""
    instance_id: InstanceId = field(default_factory=lambda: InstanceId(uuid.uuid4().hex))
    settings: Settings = field(default_factory=Settings)
    log: logging.Logger = field(default_factory=lambda: logging.getLogger("component"))
    state: ObjectState = ObjectState.INITIALIZED
    cause: str = ""
    failure: Failure | None = None
    data: str = ""
    lease: LeaseToken | None = None
    changed: Callable[[], None] | None = None
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)


class Extension(ABC):
    """What components and publishers have in common.

    A constructor names what it needs by annotation and gets it: `Settings`, `PublisherSettings`, `MessagePublisher`,
    `logging.Logger`, `InstanceId`. `start` returns when the work is under way; long work runs in `spawn`ed tasks.
    """

    _bound: Binding | None = None

    @abstractmethod
    async def start(self) -> None:
        """Begin working; raising means that nothing runs and `close` follows."""

    async def stop(self) -> None:  # noqa: B027 - an author may have nothing to do here
        """Finish what is pending. Called once after a good start; tasks still running afterwards are cancelled."""

    async def close(self) -> None:  # noqa: B027
        """Give everything back. The last call, also after a failed start."""

    @property
    def name(self) -> str:
        """The replica this object works for."""
        return self._binding.name

    @property
    def instance_id(self) -> InstanceId:
        return self._binding.instance_id

    @property
    def settings(self) -> Settings:
        return self._binding.settings

    @property
    def log(self) -> logging.Logger:
        return self._binding.log

    @property
    def state(self) -> ObjectState:
        return self._binding.state

    @property
    def cause(self) -> str:
        """Why the state is Errored, in one line; empty otherwise."""
        return self._binding.cause

    @property
    def lease(self) -> LeaseToken | None:
        """The token of the lease under which this replica runs, to give along with every write; None without a lease."""
        return self._binding.lease

    @property
    def data_folder(self) -> Path:
        """A folder of this replica's own on this node, made when it is asked for (mode 0700).

        What is in it outlives restarts, new settings and new versions, and does not follow the replica to another node. A
        component and its publisher share it.
        """
        if not self._binding.data:
            raise Missing("this host has no folder for data of its own", code="DATA_FOLDER_MISSING")
        folder = Path(self._binding.data)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return folder

    def fail(self, cause: BaseException | str) -> None:
        """Say that this object cannot go on: it becomes Errored, its host too, and the restart policy applies."""
        self._binding.failure = Failure.of(cause)
        self._move(ObjectState.ERRORED, self._binding.failure.detail)

    def spawn(self, work: Coroutine[Any, Any, object], *, name: str = "work") -> asyncio.Task[object]:
        """A task that belongs to this object: if it raises, the object fails; it is cancelled after `stop` at the latest."""
        task: asyncio.Task[object] = asyncio.create_task(work, name=f"{self.name}:{name}")
        self._binding.tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    @property
    def _binding(self) -> Binding:
        if self._bound is None:  # made by hand, as in an author's own tests
            self._bound = Binding(name=type(self).__name__)
        return self._bound

    def _ended(self, task: asyncio.Task[object]) -> None:
        self._binding.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.log.error("%s failed", task.get_name(), exc_info=error)
            self.fail(error)

    def _move(self, state: ObjectState, cause: str = "") -> None:
        binding = self._binding
        binding.state, binding.cause = state, cause
        if binding.changed is not None:
            binding.changed()


class MessagePublisher(Extension):
    """The way messages leave a replica."""

    @abstractmethod
    async def publish(self, message: Message) -> None:
        """The message is on its way, or the error says why not."""

    async def subscribe(self, subscription: Subscription, deliver: Deliver) -> None:
        """Deliver what arrives for the subscription until cancelled; acknowledge a message once `deliver` has returned.

        For publishers whose transport can deliver too. With any other, the host takes subscriptions from the node's bus.
        """
        raise Refused(f"{type(self).__name__} delivers no messages", code="NO_SUBSCRIBE")


HttpApplication: TypeAlias = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]
]
"""An ASGI application."""


class Component(Extension):
    """Business logic. `parallel` is how many messages a replica works on at once."""

    parallel: int = 1

    @property
    def http(self) -> HttpApplication | None:
        """An ASGI application that answers on the replica's port beside the host's own API; none unless overridden.

        It is asked for with each request, only while the component is started, and guards itself.
        """
        return None

    async def check(self) -> None:
        """Return when all is well, raise to say what is not; for instances whose `health` says `component: true`.

        Asked every `interval`, with `timeout`, while the component is started. What is raised makes the replica unhealthy and
        is shown to people; it stays started, and healthy is what it is again once this returns.
        """
        raise Refused(f"{type(self).__name__} has no check, and its instance asks for it", code="CHECK_MISSING")

    async def receive(self, message: Message) -> None:
        """Work on one message of what the instance subscribes to; for components that subscribe.

        Returning acknowledges it. Raising, or the end of the process, has it tried again: a message may come twice, with
        the same id. What is published meanwhile carries its correlation id.
        """
        raise Refused(f"{type(self).__name__} receives no messages", code="RECEIVE_MISSING")


def describe(error: BaseException) -> str:
    """One line for people: an error of ours as it reads, any other with its type."""
    text = " ".join(str(error).split())
    if hasattr(error, "code") and hasattr(error, "detail"):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
