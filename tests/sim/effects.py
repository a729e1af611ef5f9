"""What counts as an effect: whatever leaves a controller, an agent or a keeper.

What is sent and claimed, written to Consul and to ledgers, what is installed, removed, started, stopped and handed over, asked of
other agents and agreed to. Beats and renewals are none, nor is asking for a lock that another one holds: they change nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

T = TypeVar("T")
READS = ("check-session", "check-index", "get")


@dataclass(frozen=True, slots=True)
class Kind:
    """What calls of one name do; an empty text when this one does nothing that counts."""

    says: Callable[..., str]
    over: Literal["consul", "nodes", "peers", ""] = ""  # the network it goes over
    keeper: bool = False  # it is asked of the keeper


def _written(ops: Any) -> str:
    return ", ".join(f"{op.verb} {op.key}" for op in ops if op.verb not in READS)


KINDS: Mapping[str, Kind] = {
    "assign": Kind(lambda api, it, _: f"sends {it.epoch}.{it.generation} to {node_of(api)}", "nodes"),
    "claim": Kind(lambda api, claim: f"claims {node_of(api)}", "nodes"),
    "failsafe_ack": Kind(lambda api, ask: f"asks {ask.node} not to start {ask.replica}", "peers"),
    "put": Kind(lambda key, *_, **__: f"writes {key}", "consul"),
    "delete": Kind(lambda key, **__: f"deletes {key}", "consul"),
    "acquire": Kind(lambda key, *_: f"locks {key}", "consul"),
    "release": Kind(lambda key, *_: f"unlocks {key}", "consul"),
    "txn": Kind(lambda ops: f"writes {found}" if (found := _written(ops)) else "", "consul"),
    "session_create": Kind(lambda name, **__: f"opens the session {name}", "consul"),
    "session_destroy": Kind(lambda _: "ends its session", "consul"),
    "register": Kind(lambda service: f"registers {service.id}", "consul"),
    "deregister": Kind(lambda service: f"deregisters {service}", "consul"),
    "check_update": Kind(
        lambda check, status, _: f"says {check} is {status}" if check.endswith(":state") else "", "consul"
    ),
    "save_epoch": Kind(lambda epoch: f"notes epoch {epoch}"),
    "save_assignment": Kind(lambda it, _: f"notes assignment {it.epoch}.{it.generation}"),
    "save_session": Kind(lambda _: "notes its session"),
    "save_leases": Kind(lambda _: "notes its leases"),
    "save_failsafe": Kind(lambda _: "notes what was promised"),
    "save_ports": Kind(lambda _: "notes its ports"),
    "remove": Kind(lambda digest: f"removes {digest[:8]}"),
    "start": Kind(lambda order: f"starts {order.replica}", keeper=True),
    "stop": Kind(lambda replica: f"stops {replica}", keeper=True),
    "reconfigure": Kind(lambda order: f"hands {order.replica} its settings", keeper=True),
    "adjust": Kind(lambda order: f"hands {order.replica} its policy", keeper=True),
    "rename": Kind(lambda replica, order: f"renames {replica} to {order.replica}", keeper=True),
    "forget": Kind(lambda replica: f"forgets {replica}", keeper=True),
    "fence": Kind(lambda replica, _: f"fences {replica}", keeper=True),
    "agree": Kind(lambda replica, _: f"lets {replica} live by agreement", keeper=True),
}


class Numbering(Protocol):
    """Whoever counts effects."""

    async def effect(self, who: str, kind: Kind, what: str, do: Callable[[], Awaitable[T]]) -> T:
        """What `do` returns, unless something goes wrong just here."""
        ...


class Between:
    """One of the ways by which an agent or a controller reaches the world."""

    def __init__(self, world: Numbering, who: str, edge: Any) -> None:
        self._world, self._who, self._edge = world, who, edge

    def __getattr__(self, name: str) -> Any:
        plain = getattr(self._edge, name)
        if name == "install":
            return self._installing(plain)
        kind = KINDS.get(name)
        return plain if kind is None else self._counted(kind, plain)

    def _counted(self, kind: Kind, plain: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
        async def call(*args: Any, **more: Any) -> T:
            what = kind.says(*args, **more)
            if not what or (kind is KINDS["acquire"] and self._is_taken(*args)):
                return await plain(*args, **more)
            return await self._world.effect(self._who, kind, what, lambda: plain(*args, **more))

        return call

    def _is_taken(self, key: str, _: bytes, session: str) -> bool:
        """Whether another one holds this lock, so that asking for it changes nothing."""
        entry = self._edge.store.entries.get(key)
        return entry is not None and entry.session not in (None, "", session)

    def _installing(self, plain: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
        async def call(order: Any) -> T:
            if order.package.digest in self._edge.installed():
                return await plain(order)
            return await self._world.effect(self._who, Kind(str), f"installs {order.package}", lambda: plain(order))

        return call


def name_of(life: str) -> str:
    return life.rpartition("-")[0]


def node_of(text: str) -> str:
    """The node in `sim://a`, in `claims a` and in `sends 1.2 to a`."""
    return text.removeprefix("sim://").rpartition(" ")[2]
