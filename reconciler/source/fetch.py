"""Fetching a package that is named by URL and sha256: listed hosts only, no redirect to another one, bounded in size and time."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx

from agent.errors import Invalid, TdieError, Waiting
from reconciler.source.disk import full_disk
from reconciler.source.hosts import refused_address
from reconciler.source.shelf import Download
from reconciler.source.walk import MAX_PACKAGE

_REDIRECTS = 3
_TIMEOUT = httpx.Timeout(10.0, read=30.0)
_WHOLE = 600.0  # seconds; a server that trickles must not hold a commit for ever


async def download(wanted: Download, target: Path, *, client: httpx.AsyncClient | None = None) -> None:
    """The bytes are at `target`, checked. Raises Waiting (PKG_FETCH) or Invalid (PKG_DIGEST_MISMATCH, PKG_TOO_LARGE)."""
    try:
        async with asyncio.timeout(_WHOLE):
            if client is not None:
                await _follow(client, wanted, target)
                return
            async with httpx.AsyncClient(timeout=_TIMEOUT, trust_env=False) as own:
                await _follow(own, wanted, target)
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError) as error:
        raise full_disk(error) or _failed(wanted.url, str(error) or type(error).__name__) from error


def _failed(url: str, reason: str) -> TdieError:
    return Waiting(f"{url}: {reason}", code="PKG_FETCH")


async def _follow(client: httpx.AsyncClient, wanted: Download, target: Path) -> None:
    url = wanted.url
    for _ in range(_REDIRECTS + 1):
        host = urlsplit(url).hostname or ""
        address = await _address(url)
        request = client.build_request("GET", url)
        # The address that was checked is the one that is called: a second look-up could say something else.
        request.url = request.url.copy_with(host=address)
        request.extensions["sni_hostname"] = host
        response = await client.send(request, stream=True, follow_redirects=False)
        try:
            if response.is_redirect:
                url = _redirected(url, response.headers.get("location", ""))
                continue
            if response.status_code != 200:
                raise _failed(wanted.url, f"status {response.status_code}")
            await _store(response, wanted, target)
            return
        finally:
            await response.aclose()
    raise _failed(wanted.url, f"more than {_REDIRECTS} redirects")


def _redirected(url: str, location: str) -> str:
    target = urljoin(url, location)
    old, new = urlsplit(url), urlsplit(target)
    if (new.hostname, new.port, new.scheme) != (old.hostname, old.port, old.scheme):
        raise _failed(url, f"redirects to {new.scheme}://{new.netloc}, which is not followed")
    return target


async def _address(url: str) -> str:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(row[4][0]) for row in found]
    for address in addresses:
        if reason := refused_address(address, host):
            raise _failed(url, reason)
    return addresses[0]


async def _store(response: httpx.Response, wanted: Download, target: Path) -> None:
    digest = hashlib.sha256()
    size = 0
    temporary = target.with_name(f".{target.name}.part")
    try:
        with temporary.open("wb") as out:
            async for chunk in response.aiter_bytes(1 << 18):
                size += len(chunk)
                if size > MAX_PACKAGE:
                    raise Invalid(f"{wanted.url} has more than {MAX_PACKAGE} bytes", code="PKG_TOO_LARGE")
                digest.update(chunk)
                out.write(chunk)
            out.flush()
            await asyncio.to_thread(os.fsync, out.fileno())
        if digest.hexdigest() != wanted.sha256:
            got = digest.hexdigest()
            raise Invalid(f"{wanted.url}: want={wanted.sha256} got={got}", code="PKG_DIGEST_MISMATCH")
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
