"""Messages from one node to another, over the node API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated

import httpx
from pydantic import Field

from agent.bus.frames import MAX_BODY
from agent.bus.values import Envelope
from agent.client import error_of
from agent.errors import Waiting
from agent.wire import Told

PATH = "/api/node/messages"
MAX_HOPS = 64
Text = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f]*$")]
Named = Annotated[Text, Field(min_length=1)]


class HandedOn(Told):
    """One message for one instance. `body` is its JSON text."""

    id: Named
    topic: Named
    type: Text
    instance: Annotated[str, Field(pattern="^[a-z0-9-]{1,63}$")]
    hops: Annotated[int, Field(ge=0, le=MAX_HOPS)] = 0
    body: Annotated[str, Field(max_length=MAX_BODY)]


class HandedOnMessages(Told):
    """Messages that another node hands on to `node`; sent again, they count once."""

    node: Named
    messages: Annotated[tuple[HandedOn, ...], Field(max_length=1000)]

    def envelopes(self) -> list[Envelope]:
        return [Envelope(m.id, m.topic, m.type, m.body.encode(), (m.instance,), m.hops) for m in self.messages]


class HttpPeers:
    """Implements Peers over HTTP."""

    def __init__(self, http: httpx.AsyncClient, token: Callable[[], str]) -> None:
        self._http, self._token = http, token

    async def send(self, api: str, node: str, envelopes: Sequence[Envelope]) -> None:
        messages = tuple(
            HandedOn(
                id=e.id,
                topic=e.topic,
                type=e.type,
                instance=e.instances[0],
                hops=min(e.hops, MAX_HOPS),
                body=e.body.decode(errors="replace"),
            )
            for e in envelopes
        )
        headers = {"Content-Type": "application/json"}
        if token := self._token():
            headers["Authorization"] = f"Bearer {token}"
        content = HandedOnMessages(node=node, messages=messages).model_dump_json(by_alias=True).encode()
        try:
            answer = await self._http.post(f"{api}{PATH}", content=content, headers=headers)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Waiting(f"{api} cannot be reached ({type(error).__name__})") from error
        if not answer.is_success:
            raise error_of(answer)
