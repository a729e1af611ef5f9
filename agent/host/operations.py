"""The operations of a host's HTTP API: what each does, and everything its description needs."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from agent.callers import Role as Authority
from agent.callers import permit
from agent.errors import Invalid, Missing, Refused, TdieError
from agent.host.agent_line import Answer, ask
from agent.host.configuring import code_of, read
from agent.host.host import Host
from agent.host.objects import Role
from agent.keeper.protocol import Code, HostOrder
from agent.packages.names import kebab_case

if TYPE_CHECKING:
    from starlette.requests import Request

BASE = "/api/componentHost"
MAX_DOCUMENT = 1 << 20  # bytes of an init document
DOCUMENT_WITHIN = 30.0  # seconds for one to arrive
MAY_LOAD_ANYTHING = Authority.ADMIN
_ROLES = {"component": Role.COMPONENT, "messagePublisher": Role.PUBLISHER}


class TooLarge(TdieError):
    """The body is longer than what is read."""

    code = "BODY_TOO_LARGE"
    status = 413


class TooSlow(TdieError):
    """The body does not arrive."""

    code = "BODY_TOO_SLOW"
    status = 408


class Errored(Refused):
    """The code of a package failed, and with it this host."""

    code = "HOST_ERRORED"


@dataclass(frozen=True, slots=True)
class Operation:
    """One method and path. `answer` and `body` name schemas of the description; an Answer of the agent is passed on as it is."""

    method: str
    path: str
    summary: str
    handle: Callable[[Request], Awaitable[Mapping[str, Any] | Answer]]
    answer: str = "Host"
    body: str = ""  # "Init", "Package" or none
    status: int = 200
    tag: str = "services"


def operations(host: Host, shut_down: Callable[[], None], socket: str) -> tuple[Operation, ...]:
    """All operations of this host; `socket` is where its agent answers about packages."""
    original = host.order
    services = Services(host, original, shut_down, socket)
    packages = Packages(socket)
    found = [
        Operation("GET", "/configuration", "What this host runs, and how it is.", services.configuration, tag="host"),
        Operation("POST", "/shutdown", "Stop everything and end this process.", services.shutdown, status=202, tag="host"),
        Operation(
            "POST", "/packages", "Upload a package that is not on this node.", packages.forward,
            answer="Package", body="Package", status=201, tag="packages",
        ),
        Operation(
            "PUT", "/packages", "Upload another version of a package; a lower one needs `rollback`.", packages.forward,
            answer="Package", body="Package", tag="packages",
        ),
        Operation(
            "GET", "/packages/configuration", "What every package of this node says of itself.", packages.forward,
            answer="Packages", tag="packages",
        ),
        Operation(
            "GET", "/packages/{packageName}/configuration", "What one package says of itself.", packages.forward,
            answer="Package", tag="packages",
        ),
        Operation("PUT", "/services/start", "Start all that is set up, the publisher first.", services.start),
        Operation("PUT", "/services/stop", "Stop all, the component first.", services.stop),
    ]  # fmt: skip
    for word, role in _ROLES.items():
        at = f"/services/{word}/{{packageName}}"
        found += [
            Operation("PUT", f"{at}/init", f"Set the {role} up, or without a document anew.",
                      services.init(role), body="Init"),
            Operation("PUT", f"{at}/start", f"Start the {role}.", services.member(role, host.start_member)),
            Operation("PUT", f"{at}/stop", f"Stop the {role}.", services.member(role, host.stop_member)),
        ]  # fmt: skip
    return tuple(found)


class Services:
    """What is asked of the objects of a host."""

    def __init__(self, host: Host, original: HostOrder, shut_down: Callable[[], None], socket: str) -> None:
        self._host, self._original, self._shut_down, self._socket = host, original, shut_down, socket

    async def configuration(self, _request: Request) -> Mapping[str, Any]:
        return describe_host(self._host)

    async def shutdown(self, _request: Request) -> Mapping[str, Any]:
        self._shut_down()
        return describe_host(self._host)

    async def start(self, _request: Request) -> Mapping[str, Any]:
        await self._told(self._host.start())
        return describe_host(self._host)

    async def stop(self, _request: Request) -> Mapping[str, Any]:
        await self._told(self._host.stop())
        return describe_host(self._host)

    def init(self, role: Role) -> Callable[[Request], Awaitable[Mapping[str, Any]]]:
        async def handle(request: Request) -> Mapping[str, Any]:
            name = kebab_case(request.path_params["packageName"])
            body = await _document(request)
            if not body:
                self._check_name(role, name)
            elif "assemblyPath" in body:  # any code of this machine, not only a package that an admin has let in
                permit(request.state.caller, MAY_LOAD_ANYTHING)
            code = (
                await code_of(self._host.order, self._original, role, read(name, body), self._socket) if body else None
            )
            await self._told(self._host.init(role, code))
            return describe_host(self._host)

        return handle

    def member(
        self, role: Role, act: Callable[[Role], Awaitable[None]]
    ) -> Callable[[Request], Awaitable[Mapping[str, Any]]]:
        async def handle(request: Request) -> Mapping[str, Any]:
            self._check_name(role, kebab_case(request.path_params["packageName"]))
            await self._told(act(role))
            return describe_host(self._host)

        return handle

    async def _told(self, work: Awaitable[None]) -> None:
        """What the code of a package raises becomes HOST_ERRORED."""
        try:
            await work
        except TdieError:
            raise
        except Exception as error:
            if self._host.failure is None:
                raise
            raise Errored(self._host.cause, hint="configuration tells more") from error

    def _check_name(self, role: Role, name: str) -> None:
        code = self._host.order.component if role is Role.COMPONENT else self._host.order.publisher
        if code is None or code.name != name:
            here = f"its {role} is {code.name}" if code is not None else f"it has no {role}"
            raise Missing(f"this host has no {role} {name[:100]}: {here}", code="PKG_UNKNOWN")


class Packages:
    """The packages of the node: the agent keeps them, and answers."""

    def __init__(self, socket: str) -> None:
        self._socket = socket

    async def forward(self, request: Request) -> Answer:
        path = "/api/node/packages" + quote(request.url.path.removeprefix(f"{BASE}/packages"))
        query = quote(request.scope["query_string"], safe="=&%+")
        target = f"{path}?{query}" if query else path
        media_type = request.headers.get("content-type", "")
        body = request.stream() if request.method != "GET" else None
        return await ask(self._socket, request.method, target, body, media_type)


async def _document(request: Request) -> dict[str, Any]:
    data = bytearray()
    try:
        async with asyncio.timeout(DOCUMENT_WITHIN):
            async for chunk in request.stream():
                data += chunk
                if len(data) > MAX_DOCUMENT:
                    raise TooLarge(f"at most {MAX_DOCUMENT} bytes are read")
    except TimeoutError as error:
        raise TooSlow(f"a body arrives within {DOCUMENT_WITHIN:g} s") from error
    if not data.strip():
        return {}
    try:
        found = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise Invalid("the body is no JSON") from error
    if not isinstance(found, dict):
        raise Invalid("the body is no JSON object")
    return found


def describe_host(host: Host) -> dict[str, Any]:
    """Configuration and run-time state; settings by name only, because their values may be secret."""
    order, status = host.order, host.status()
    parts = [(Role.COMPONENT, order.component), *([(Role.PUBLISHER, order.publisher)] if order.publisher else [])]
    return {
        "replica": order.replica,
        "instance": order.instance,
        "node": order.node,
        "pid": os.getpid(),
        "port": order.port,
        "state": host.state,
        "healthy": status["healthy"],
        "cause": status["cause"] or status["ailing"],
        "error": asdict(host.failure) if host.failure else None,
        "packages": [_describe_part(host, role, code) for role, code in parts],
    }


def _describe_part(host: Host, role: Role, code: Code) -> dict[str, Any]:
    seen = host.objects.seen(role)
    return {
        "kind": role,
        "packageName": code.name,
        "packageVersion": code.version,
        "digest": code.digest,
        "type": code.component_type,
        "settings": sorted(code.settings),
        "state": seen.state,
        "error": asdict(seen.failure) if seen.failure else None,
    }
