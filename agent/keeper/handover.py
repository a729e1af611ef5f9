"""What one image of a keeper leaves to the next: all that is in no file, in memory that both can read.

Linux: an execve keeps the process, its children and what it is to them, and every descriptor that is inheritable.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from agent.errors import Invalid
from agent.keeper import codec
from agent.keeper.channel import Line
from agent.keeper.hosted import Hosted
from agent.keeper.protocol import HostOrder

VERSION = 1
T = TypeVar("T")
_OF_THIS_IMAGE = ("channel", "timer")  # of a host: made anew from `line` and `due`
_HOST = tuple(f.name for f in fields(Hosted) if f.name not in (*_OF_THIS_IMAGE, "order_text"))


@dataclass(frozen=True, slots=True)
class KeptHost:
    """One host, its channel, and when its timer is due."""

    host: Hosted
    line: Line | None = None
    due: float | None = None


@dataclass(frozen=True, slots=True)
class KeptZygote:
    """The zygote that runs, if one does, and which launches are to end with the keeper."""

    pid: int | None
    descriptor: int | None
    generation: int
    guarded: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KeptHosts:
    """All that is known of hosts; `waiting` are not handed to the zygote yet, `swept` are not proven gone."""

    hosts: tuple[KeptHost, ...]
    waiting: tuple[str, ...]
    swept: tuple[str, ...]
    zygote: KeptZygote
    deadline: float
    agreed: Mapping[str, float]
    problems: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class KeptClient:
    """One connection: of which replicas it is still to be told when it listens, and what it asked this for."""

    line: Line
    pending: tuple[str, ...] | None = None
    asked: object = None


@dataclass(frozen=True, slots=True)
class KeptServer:
    """The socket and everybody who is connected."""

    listener: int
    clients: tuple[KeptClient, ...]


@dataclass(frozen=True, slots=True)
class Handover:
    """Everything. `code` is that of the image which wrote it, `at` when it did."""

    code: str
    at: float
    hosts: KeptHosts
    server: KeptServer

    def descriptors(self) -> Iterator[int]:
        """All that have to be inherited."""
        yield self.server.listener
        if self.hosts.zygote.descriptor is not None:
            yield self.hosts.zygote.descriptor
        for kept in self.hosts.hosts:
            if kept.host.descriptor is not None:
                yield kept.host.descriptor
            if kept.line is not None:
                yield kept.line.descriptor
        for client in self.server.clients:
            yield client.line.descriptor


def write(kept: Handover) -> int:
    """A descriptor of memory that holds this, to be read from its beginning."""
    body = json.dumps({"version": VERSION, "kept": kept}, default=_plain).encode()
    memory = os.memfd_create("tdie-keeper")
    view = memoryview(body)
    while view:
        view = view[os.write(memory, view) :]
    os.lseek(memory, 0, os.SEEK_SET)
    return memory


def read(memory: int) -> Handover:
    """What was written. Invalid when it makes no sense to this code."""
    try:
        with os.fdopen(memory, "rb") as stream:
            said = codec.read_object(stream.read())
        if said["version"] != VERSION:
            raise Invalid(f"version {said['version']}, this keeper reads {VERSION}", code="HANDOVER_UNREADABLE")
        raw = said["kept"]
        return Handover(str(raw["code"]), float(raw["at"]), _hosts(raw["hosts"]), _server(raw["server"]))
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise Invalid(f"what was handed over is not whole: {error}", code="HANDOVER_UNREADABLE") from error


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, Hosted):
        plain = {name: getattr(value, name) for name in _HOST}
        wanted = None if value.wanted is None else codec.order_text(value.wanted)
        return {**plain, "order": codec.order_text(value.order), "wanted": wanted}
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Line | KeptHost | KeptZygote | KeptHosts | KeptClient | KeptServer | Handover):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    raise TypeError(f"{type(value).__name__} cannot travel")


def _hosts(raw: Mapping[str, Any]) -> KeptHosts:
    zygote = raw["zygote"]
    return KeptHosts(
        hosts=tuple(KeptHost(_hosted(kept["host"]), _maybe(_line, kept["line"]), kept["due"]) for kept in raw["hosts"]),
        waiting=tuple(raw["waiting"]),
        swept=tuple(raw["swept"]),
        zygote=KeptZygote(**{**zygote, "guarded": tuple(zygote["guarded"])}),
        deadline=float(raw["deadline"]),
        agreed=dict(raw["agreed"]),
        problems=dict(raw["problems"]),
    )


def _hosted(raw: Mapping[str, Any]) -> Hosted:
    """The host; what an earlier image did not know of it is as of a new one, what a later one added is not understood."""
    if unknown := sorted(raw.keys() - set(_HOST)):
        raise codec.VersionSkew(f"unknown fields of a host: {', '.join(unknown)}")
    host = Hosted(order=_order(raw["order"]), wanted=_maybe(_order, raw["wanted"]))
    for name in raw.keys() - {"order", "wanted"}:
        setattr(host, name, tuple(raw[name]) if isinstance(raw[name], list) else raw[name])
    host.order_text = codec.order_text(host.order)
    return host


def _order(text: str) -> HostOrder:
    return codec.order_from(codec.read_object(text))


def _server(raw: Mapping[str, Any]) -> KeptServer:
    clients = (
        KeptClient(_line(each["line"]), _maybe(tuple, each["pending"]), each["asked"]) for each in raw["clients"]
    )
    return KeptServer(int(raw["listener"]), tuple(clients))


def _line(raw: Mapping[str, Any]) -> Line:
    return Line(int(raw["descriptor"]), raw["held"].encode("latin-1"), raw["unsent"].encode("latin-1"))


def _maybe(made: Callable[[Any], T], raw: Any) -> T | None:
    return None if raw is None else made(raw)
