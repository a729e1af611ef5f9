"""One node asks another, over the node API, not to start a replica for a while: all that one agent may ask of another's leases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Protocol

import httpx
from pydantic import Field

from agent.client import error_of
from agent.errors import Waiting
from agent.wire import Told

PATH = "/api/node/failsafe-ack"
Named = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]*$")]


class Ask(Told):
    """`holder` runs `replica` while Consul is away: `node` is asked not to start it for so many seconds."""

    cluster: Named
    node: Named  # who is asked: an address may be another agent's after a restart
    holder: Named
    replica: Named
    seconds: Annotated[float, Field(gt=0.0, le=86_400.0)]


class Ack(Told):
    """The promise was given, and is on disk."""

    node: Named
    replica: Named


class Peers(Protocol):
    """Agents of other nodes. Raises Refused when one says no, Waiting when it cannot be reached."""

    async def failsafe_ack(self, api: str, ask: Ask) -> Ack: ...


class Nobody:
    """There is no way to any other node."""

    async def failsafe_ack(self, api: str, ask: Ask) -> Ack:
        raise Waiting(f"{ask.node} cannot be reached")


class HttpPeers:
    """Implements Peers over HTTP."""

    def __init__(self, http: httpx.AsyncClient, token: Callable[[], str]) -> None:
        self._http, self._token = http, token

    async def failsafe_ack(self, api: str, ask: Ask) -> Ack:
        headers = {"Content-Type": "application/json"}
        if token := self._token():
            headers["Authorization"] = f"Bearer {token}"
        content = ask.model_dump_json(by_alias=True).encode()
        try:
            answer = await self._http.post(f"{api}{PATH}", content=content, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Waiting(f"{api} cannot be reached ({type(error).__name__})") from error
        if not answer.is_success:
            raise error_of(answer)
        try:
            return Ack.model_validate_json(answer.content)
        except ValueError as error:
            raise Waiting(f"{api} does not answer as an agent does") from error
