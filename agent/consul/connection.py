"""py-consul on connections of our making: TLS, unix sockets, deadlines and unambiguous errors.

py-consul's own client cannot express unix sockets, IPv6 hosts, a CA directory, a TLS server name or a token re-read, takes its
token from the environment first, and passes TLS arguments that aiohttp has deprecated. Its endpoints are kept, its transport
is replaced here.
"""

from __future__ import annotations

from typing import Any

import aiohttp
import consul.aio
import consul.base
from yarl import URL

from agent.consul.address import Address, Tls, Token
from agent.consul.errors import Answered

# Consul closes the 201st connection of one client address; several programs of ours share a machine.
CONNECTIONS = 64


class Transport(consul.aio.HTTPClient):  # type: ignore[misc]  # py-consul has no types
    """One pool of connections; every status that is no success raises Answered, except a 404 to a question."""

    def __init__(self, address: Address, tls: Tls) -> None:
        consul.base.HTTPClient.__init__(self, address.host, address.port, address.scheme)
        self.base_uri = address.url
        self._server_name = tls.server_name
        connector: aiohttp.BaseConnector
        if address.socket:
            connector = aiohttp.UnixConnector(address.socket, limit=CONNECTIONS)
        elif address.scheme == "https":
            connector = aiohttp.TCPConnector(limit=CONNECTIONS, ssl=tls.context())
        else:
            connector = aiohttp.TCPConnector(limit=CONNECTIONS)
        # Deadlines are set around each call: they depend on how long it is asked to wait. No proxies from the environment.
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=None), trust_env=False
        )

    async def _request(
        self,
        callback: Any,
        method: str,
        uri: str,
        headers: dict[str, str] | None,
        data: Any = None,
        connections_timeout: float | None = None,
        raw: bool = False,
    ) -> Any:
        # `encoded`: aiohttp would otherwise resolve "." and ".." inside keys.
        async with self._session.request(
            method, URL(uri, encoded=True), headers=headers, data=data, server_hostname=self._server_name
        ) as response:
            body = await response.text(encoding="utf-8", errors="replace")
        if response.status >= 400 and not (response.status == 404 and method == "GET"):
            raise Answered(response.status, body)
        return callback(consul.base.Response(response.status, response.headers, body))


class Connection(consul.aio.Consul):  # type: ignore[misc]  # py-consul has no types
    """py-consul's endpoints over one Transport."""

    def __init__(self, address: Address, tls: Tls, token: Token) -> None:
        self._address = address
        self._tls = tls
        self._token = token
        super().__init__(address.host, address.port, scheme=address.scheme, verify=False)

    def http_connect(self, host: str, port: int, scheme: str, verify: bool | str = True, cert: Any = None) -> Transport:
        return Transport(self._address, self._tls)

    def prepare_headers(self, token: str | None = None) -> dict[str, str]:
        value = token or self._token.value
        return {"X-Consul-Token": value} if value else {}
