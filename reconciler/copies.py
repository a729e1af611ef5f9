"""Packages that were uploaded to one controller, copied by the others: from a controller, else from an agent that has it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import structlog

from agent import keys
from agent.client import http_client
from agent.consul.protocol import Consul
from agent.errors import Missing, TdieError
from agent.packages.archive import DEFAULT_LIMITS

log = structlog.get_logger("copies")

WAIT = 300.0  # seconds of one look at the list of uploads
AGAIN = 10.0  # … before what could not be copied is tried again
_WHOLE = 600.0


class Copies:
    """Finds who has a digest through Consul; `run` keeps this controller's copies complete."""

    def __init__(self, cluster: str, api: str, *, consul: Consul, token: Callable[[], str] = str) -> None:
        """`api` is our own URL, which is not asked."""
        self._cluster, self._api = cluster, api
        self._consul, self._token = consul, token
        self._http = http_client()

    async def fetch(self, digest: str, what: str, file: Path) -> None:
        """The archive is in the file, its content unverified. Raises Missing (PACKAGE_MISSING) when nobody has it."""
        asked = 0
        for url in await self._urls(digest):
            asked += 1
            if await self._from(url, file):
                log.info("copied", package=what, source=url)
                return
        raise Missing(
            f"{what} ({digest[:12]}…): none of {asked} controllers and agents has it",
            code="PACKAGE_MISSING",
            hint="upload it again: tdie package push",
        )

    async def run(self, copy: Callable[[str, str], Awaitable[None]]) -> None:
        """Whatever is uploaded anywhere is copied here, for ever; nothing is polled while nothing is uploaded."""
        index = 0
        while True:
            try:
                index, entry = await self._consul.watch(keys.record(self._cluster, "uploads"), index, WAIT)
                uploads = json.loads(entry.value) if entry else {}
                for digest, known in uploads.items():
                    await copy(digest, f"{known['name']}@{known['version']}")
            except TdieError as error:
                log.info("uploads are not all here yet", error=str(error))
                index = 0
                await asyncio.sleep(AGAIN)

    async def close(self) -> None:
        """No connection is open any more."""
        await self._http.aclose()

    async def _urls(self, digest: str) -> list[str]:
        """Controllers first: there are few of them, and they copy everything."""
        urls = []
        for service, path in ((keys.CONTROLLER_SERVICE, "master"), (keys.AGENT_SERVICE, "node")):
            _, entries = await self._consul.watch_service(service, self._cluster, 0, 0.0)
            found = sorted(entry.meta.get(keys.API_META, "") for entry in entries if entry.passing)
            urls += [f"{api}/api/{path}/packages/{digest}" for api in found if api and api != self._api]
        return urls

    async def _from(self, url: str, file: Path) -> bool:
        headers = {"Authorization": f"Bearer {token}"} if (token := self._token()) else {}
        size = 0
        try:
            async with asyncio.timeout(_WHOLE), self._http.stream("GET", url, headers=headers) as answer:
                if answer.status_code != 200:
                    return False
                with file.open("wb") as out:
                    async for chunk in answer.aiter_bytes():
                        size += len(chunk)
                        if size > DEFAULT_LIMITS.archive:
                            return False
                        out.write(chunk)
            return True
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            log.info("no copy from there", source=url, error=type(error).__name__)
            return False
