"""PUBLIC: the node API as controllers, the command line and other agents use it."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport
from pydantic import BaseModel, ValidationError

from agent.correlation import HEADER, current
from agent.errors import Denied, Invalid, Late, Missing, Refused, TdieError, Waiting
from agent.expiry import Expiry
from agent.refusals import StaleLeader
from agent.wire import SKEWED, Accepted, Assignment, Claim, Claimed, Report

M = TypeVar("M", bound=BaseModel)

CONNECT = 5.0  # seconds
ANSWER = 10.0  # seconds an agent may take for anything that does not wait on purpose
# A long poll says nothing for most of a minute: whether the other machine is still there is asked below it, by TCP itself. Who is
# gone without a word (its power, its cable) is known after QUIET + PROBES * EVERY seconds.
QUIET, EVERY, PROBES = 3, 1, 4
_ASK_IF_THERE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, QUIET),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, EVERY),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES),
    (
        socket.IPPROTO_TCP,
        socket.TCP_USER_TIMEOUT,
        1000 * (QUIET + PROBES * EVERY),
    ),  # for what was sent and not acknowledged
)
_KINDS: Mapping[int, type[TdieError]] = {
    401: Denied,
    403: Denied,
    404: Missing,
    409: Refused,
    400: Invalid,
    422: Invalid,
}


class NodeApi(Protocol):
    """What a controller asks of agents. `api` is the URL an agent registered.

    Raises Waiting (unreachable, too slow), Denied, or Refused; a StaleLeader carries the epoch that is in force there.
    """

    async def claim(self, api: str, claim: Claim) -> Claimed: ...

    async def assign(self, api: str, assignment: Assignment, expiry: Expiry) -> Accepted:
        """The agent has the assignment on disk. Without an answer it has it, or never will once `expiry` is over."""
        ...

    async def report(self, api: str, index: int, wait: float, agent: str) -> Report:
        """What changed since `index` of this `agent`, at the latest after `wait` seconds."""
        ...

    async def logs(self, api: str, replica: str, lines: int) -> str: ...

    def follow_logs(self, api: str, replica: str, lines: int) -> AsyncIterator[bytes]:
        """The last lines, then what is written, until the caller stops listening."""
        ...

    async def kill(self, api: str, package: str, replica: str) -> None: ...

    async def close(self) -> None: ...


def http_client(*, verify: ssl.SSLContext | None = None, timeout: httpx.Timeout | None = None) -> httpx.AsyncClient:
    """The one way to make an HTTP client: any number of connections, no proxy or redirect, one TLS context to share."""
    context = verify or _default_context()
    transport = AiohttpTransport(verify=context, client=lambda: _session(context))
    # httpx makes a second TLS context unless it is told one: 34 ms each.
    return httpx.AsyncClient(
        transport=transport,
        verify=context,
        trust_env=False,
        timeout=timeout or httpx.Timeout(ANSWER, connect=CONNECT),
        follow_redirects=False,
        event_hooks={"request": [_correlated]},
    )


def _session(context: ssl.SSLContext) -> aiohttp.ClientSession:
    """What the transport would make by itself, on sockets that notice when nobody is there any more."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60.0, ssl=context, socket_factory=_socket)
    return aiohttp.ClientSession(connector=connector)


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, _name, _where = address
    made = socket.socket(family, kind, protocol)
    for level, option, value in _ASK_IF_THERE:
        made.setsockopt(level, option, value)
    made.setblocking(False)
    return made


async def _correlated(request: httpx.Request) -> None:
    """What is asked on behalf of a request carries its id on."""
    request.headers.setdefault(HEADER, current())


_contexts: list[ssl.SSLContext] = []


def _default_context() -> ssl.SSLContext:
    if not _contexts:
        _contexts.append(ssl.create_default_context())
    return _contexts[0]


class NodeClient:
    """Implements NodeApi over HTTP for any number of agents."""

    def __init__(self, *, token: Callable[[], str] = str, verify: ssl.SSLContext | None = None) -> None:
        """`token` is asked for each request, so a rotated one is used."""
        self._token = token
        self._http = http_client(verify=verify)

    async def claim(self, api: str, claim: Claim) -> Claimed:
        return await self._model(Claimed, "PUT", f"{api}/api/node/leader", body=claim)

    async def assign(self, api: str, assignment: Assignment, expiry: Expiry) -> Accepted:
        joined = f"{assignment.epoch}.{assignment.generation}"  # as in the logs of what it starts
        params = {"boot": expiry.boot_id, "until": repr(expiry.at)}
        url = f"{api}/api/node/assignment"
        return await self._model(Accepted, "PUT", url, body=assignment, params=params, joined=joined)

    async def report(self, api: str, index: int, wait: float, agent: str) -> Report:
        params = {"index": str(index), "wait": f"{wait}s", "agent": agent}
        return await self._model(Report, "GET", f"{api}/api/node/report", params=params, wait=wait)

    async def logs(self, api: str, replica: str, lines: int) -> str:
        url = f"{api}/api/node/processes/{quote(replica, safe='')}/logs"
        return (await self._ask("GET", url, params={"lines": str(lines)})).text

    async def follow_logs(self, api: str, replica: str, lines: int) -> AsyncIterator[bytes]:
        url = f"{api}/api/node/processes/{quote(replica, safe='')}/logs"
        token = self._token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        asked = {"params": {"lines": str(lines), "follow": "true"}, "headers": headers}
        try:
            timeout = httpx.Timeout(ANSWER, connect=CONNECT, read=None)
            async with self._http.stream("GET", url, timeout=timeout, **asked) as answer:  # type: ignore[arg-type]
                if not answer.is_success:
                    await answer.aread()
                    raise error_of(answer)
                async for chunk in answer.aiter_bytes():
                    yield chunk
        except httpx.HTTPError as error:
            raise Waiting(f"{_host(url)} went away") from error

    async def kill(self, api: str, package: str, replica: str) -> None:
        await self._ask("PUT", f"{api}/api/node/processes/{quote(package, safe='')}/{quote(replica, safe='')}/kill")

    async def messages(self, api: str, method: str, path: str, params: Mapping[str, str]) -> Any:
        """The answer at this path below /api/node/messages."""
        answer = await self._ask(method, f"{api}/api/node/messages{path}", params=params)
        try:
            return answer.json()
        except ValueError as error:
            raise Waiting(f"{_host(api)}: the answer makes no sense", code="BAD_ANSWER") from error

    async def close(self) -> None:
        """No connection is open any more."""
        await self._http.aclose()

    async def _model(self, kind: type[M], method: str, url: str, **more: Any) -> M:
        answer = await self._ask(method, url, **more)
        try:
            return kind.model_validate_json(answer.content)
        except ValidationError as error:
            raise _unreadable(_host(url), error) from error

    async def _ask(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        body: BaseModel | None = None,
        wait: float = 0.0,
        joined: str = "",
    ) -> httpx.Response:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if joined:
            headers[HEADER] = joined
        if token := self._token():
            headers["Authorization"] = f"Bearer {token}"
        timeout = httpx.Timeout(ANSWER, connect=CONNECT, read=ANSWER + wait)
        content = body.model_dump_json(by_alias=True).encode() if body is not None else None
        try:
            answer = await self._http.request(
                method, url, params=params, content=content, headers=headers, timeout=timeout
            )
        except httpx.TimeoutException as error:
            raise Late(f"{_host(url)} does not answer in time") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Waiting(f"{_host(url)} cannot be reached ({type(error).__name__})") from error
        if answer.is_success:
            return answer
        raise error_of(answer)


def _unreadable(host: str, error: ValidationError) -> Waiting:
    """An answer of a newer program is waited out until this one is upgraded; anything else makes no sense."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    if all(problem["type"] in SKEWED for problem in problems):
        where = ", ".join(".".join(map(str, problem["loc"])) for problem in problems[:3])
        return Waiting(
            f"{host} is newer than this program and says more: {where}", code="VERSION_SKEW", hint="upgrade this one"
        )
    return Waiting(f"{host}: the answer makes no sense", code="BAD_ANSWER")


def error_of(answer: httpx.Response) -> TdieError:
    """The error that an answer of one of our APIs spells, named for what the caller can do."""
    try:
        said = answer.json()
    except ValueError:
        said = None
    said = said if isinstance(said, dict) else {}
    code, detail = str(said.get("code", "")), str(said.get("detail") or f"answers {answer.status_code}")
    if code == StaleLeader.code and isinstance(said.get("epoch"), int):
        return StaleLeader(detail, said["epoch"])
    kind = _KINDS.get(answer.status_code, Waiting)
    return kind(detail, code=code or None, where=_host(str(answer.request.url)), hint=str(said.get("hint") or ""))


def _host(url: str) -> str:
    try:
        return httpx.URL(url).netloc.decode() or url
    except httpx.InvalidURL:
        return url
