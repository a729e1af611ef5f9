"""The keeper's socket: requests answered in order, rows told to whoever listens."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from agent.errors import Denied, Invalid, TdieError
from agent.keeper import codec, linux
from agent.keeper.channel import Channel
from agent.keeper.handover import KeptClient, KeptServer
from agent.keeper.hosted import Hosted
from agent.keeper.listener import listen_at
from agent.keeper.loop import READ, Loop
from agent.keeper.protocol import SANDBOX_DEGRADED
from agent.keeper.recovery import attach
from agent.keeper.supervisor import Supervisor
from agent.keeper.upgrade import Upgrade

ENOUGH = 1 << 16  # bytes under way to a listener; further rows wait as names, so a slow one costs no memory
PROTOCOL = 1


class Server:
    """Serves one supervisor on one unix socket, to processes of the same user only."""

    def __init__(
        self, loop: Loop, path: Path, supervisor: Supervisor, upgrade: Upgrade, kept: KeptServer | None = None
    ) -> None:
        """`kept` is what the image of this keeper before us handed over: nobody who is connected notices."""
        self._loop, self._path, self._supervisor, self._upgrade = loop, path, supervisor, upgrade
        self._connections: set[Connection] = set()
        if kept is None:
            self._listener = listen_at(path)
            self._listener.setblocking(False)
        else:
            self._listener = socket.socket(fileno=kept.listener)
            self._listener.setblocking(False)
            for client in kept.clients:
                self._connect(socket.socket(fileno=client.line.descriptor), client)
        loop.watch(self._listener.fileno(), READ, self._accept)
        supervisor.changed = self._changed
        supervisor.dropped = self._dropped

    def close(self) -> None:
        """Nobody can connect any more; what was answered has been sent as far as the others read."""
        self._loop.ignore(self._listener.fileno())
        self._listener.close()
        self._path.unlink(missing_ok=True)
        for connection in list(self._connections):
            connection.channel.close()

    def _accept(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except OSError:
            return
        _pid, uid = linux.peer(accepted)
        if uid not in (os.getuid(), 0):
            accepted.close()
            return
        self._connect(accepted)

    def hand_over(self) -> KeptServer:
        """The socket and everybody who is connected."""
        return KeptServer(self._listener.fileno(), tuple(each.hand_over() for each in self._connections))

    def upgraded(self, answer: Mapping[str, object]) -> None:
        """Whoever asked for an upgrade hears how it went."""
        for connection in self._connections:
            connection.upgraded(answer)

    def _connect(self, accepted: socket.socket, kept: KeptClient | None = None) -> None:
        connection = Connection(self._loop, accepted, self._supervisor, self._upgrade, kept)
        connection.closed = lambda: self._connections.discard(connection)
        self._connections.add(connection)

    def _changed(self, host: Hosted) -> None:
        for connection in self._connections:
            connection.changed(host.order.replica)

    def _dropped(self, replica: str) -> None:
        for connection in self._connections:
            connection.changed(replica)


class Connection:
    """One client. Its requests are answered in order; as a listener it gets the newest row of each replica that changed."""

    def __init__(
        self,
        loop: Loop,
        accepted: socket.socket,
        supervisor: Supervisor,
        upgrade: Upgrade,
        kept: KeptClient | None = None,
    ) -> None:
        self._loop, self._supervisor, self._upgrade = loop, supervisor, upgrade
        self.closed: Callable[[], object] = lambda: None
        self.channel = Channel(loop, accepted, self._hear, self._ended, kept.line if kept else None)
        self.channel.drained = self._tell
        self._pending: dict[str, None] | None = None  # a listener has replicas to tell of
        self._telling = False
        self._asked: object = None  # the number of its request for an upgrade
        if kept is not None:
            self._asked = kept.asked
            self._pending = None if kept.pending is None else dict.fromkeys(kept.pending)
            loop.soon(self._tell)

    def hand_over(self) -> KeptClient:
        """All there is of this connection."""
        return KeptClient(
            self.channel.line(), pending=None if self._pending is None else tuple(self._pending), asked=self._asked
        )

    def upgraded(self, answer: Mapping[str, object]) -> None:
        """When it asked for that, it is answered."""
        if self._asked is not None:
            self.channel.tell({"id": self._asked, **answer})
            self._asked = None

    def changed(self, replica: str) -> None:
        if self._pending is not None:
            self._pending[replica] = None
            if not self._telling:
                self._telling = True
                self._loop.soon(self._tell)

    def _ended(self) -> None:
        self._pending = None
        self.closed()

    def _tell(self) -> None:
        self._telling = False
        while self._pending and self.channel.waiting < ENOUGH and not self.channel.closed:
            replica = next(iter(self._pending))
            del self._pending[replica]
            host = self._supervisor.hosts.get(replica)
            if host is None:
                self.channel.tell({"dropped": replica})
            else:
                self.channel.write(f'{{"row":{host.row_text()}}}\n'.encode())

    def _hear(self, request: dict[str, Any]) -> None:
        number = request.get("id")
        try:
            self._answer(number, request)
        except TdieError as error:
            self.channel.tell({"id": number, **refusal(error)})

    def _answer(self, number: object, request: dict[str, Any]) -> None:
        do, keeper = request.get("do"), self._supervisor
        match do:
            case "start":
                keeper.start(codec.order_from(request.get("order")))
            case "reconfigure":
                keeper.reconfigure(codec.order_from(request.get("order")))
            case "adjust":
                keeper.adjust(codec.order_from(request.get("order")))
            case "rename":
                keeper.rename(_replica(request), codec.order_from(request.get("order")))
            case "stop":
                keeper.stop(_replica(request))
            case "forget":
                keeper.forget(_replica(request))
            case "extend":
                keeper.extend(_number(request, "deadline"))
            case "agree":
                keeper.agree(_replica(request), _number(request, "deadline"))
            case "fence":
                keeper.fence(_replica(request), str(request.get("code", "")))
            case "rows":
                rows = ",".join(host.row_text() for host in keeper.hosts.values())
                self.channel.write(f'{{"id":{codec.text(number)},"result":[{rows}]}}\n'.encode())
                return
            case "about":
                self.channel.tell({"id": number, "result": self._about()})
                return
            case "events":
                self._pending = dict.fromkeys(keeper.hosts)
                self.channel.tell({"id": number, "result": None})
                self._tell()
                return
            case "attach":
                self._attach(request)
                return
            case "upgrade":
                self._upgrade.ask(_command(request), str(request.get("code", "")))
                self._asked = number  # answered by the code that goes on
                return
            case "shutdown":
                self._upgrade.never()
                keeper.shutdown(lambda: self._left(number))
                return
            case _:
                raise Invalid(f"this keeper cannot {do!r}", code="VERSION_SKEW", hint="upgrade the keeper of this node")
        # answered at the end of the turn: the order is on disk by then, and many requests share one write
        self._loop.soon(lambda: self.channel.tell({"id": number, "result": None}))

    def _about(self) -> dict[str, Any]:
        zygote = self._supervisor.processes.zygote
        return {
            "protocol": PROTOCOL,
            "code": self._upgrade.code,
            "pid": os.getpid(),
            "zygote": {"pid": zygote.pid, "ready": zygote.ready, "replaced": max(0, zygote.generation - 1)},
            "problems": [{"code": name.split()[0], "detail": text} for name, text in self._supervisor.problems.items()],
            "sandbox": f"{SANDBOX_DEGRADED} {missing}"
            if (missing := self._supervisor.processes.cgroups.missing)
            else "",
            "hosts": len(self._supervisor.hosts),
            "speaking": sum(host.channel is not None for host in self._supervisor.hosts.values()),
        }

    def _attach(self, request: dict[str, Any]) -> None:
        pid, uid = linux.peer(self.channel.socket)
        if uid != os.getuid():
            raise Denied("hosts run as the keeper's own user")
        host = attach(self._supervisor, pid, request)
        connection = self.channel.release()
        self._ended()
        self._supervisor.processes.hang_up(host)
        self._supervisor.processes.connect(host, connection)
        self._supervisor.heard(host, request)

    def _left(self, number: object) -> None:
        left = [replica for replica, host in self._supervisor.hosts.items() if host.alive]
        self.channel.tell({"id": number, "result": left})
        self._loop.stop()


def refusal(error: TdieError) -> dict[str, Any]:
    """The part of an answer that says so."""
    return {"error": {"code": error.code, "detail": error.detail, "hint": error.hint, "status": error.status}}


def _command(request: dict[str, Any]) -> tuple[str, ...]:
    command = request.get("command")
    if not (isinstance(command, list) and command and all(isinstance(word, str) and word for word in command)):
        raise Invalid("the request names no command", code="ORDER_INVALID")
    if not command[0].startswith("/") or any("\0" in word for word in command):
        raise Invalid(f"{command[0]!r} is no program of this machine", code="ORDER_INVALID")
    return tuple(command)


def _number(request: dict[str, Any], name: str) -> float:
    value = request.get(name)
    if value is None or not codec.is_number(value):
        raise Invalid(f"the request has no {name}", code="ORDER_INVALID")
    return float(value)


def _replica(request: dict[str, Any]) -> str:
    if not isinstance(replica := request.get("replica"), str):
        raise Invalid("the request names no replica", code="ORDER_INVALID")
    return replica
