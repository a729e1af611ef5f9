"""The embedded Consul's HTTP side: requests in, blocking reads, nothing answered before it is on disk."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp import web

from agent.consul.decode import seconds
from agent.consul.embedded import filter as filters
from agent.consul.embedded.base import Kind
from agent.consul.embedded.journal import Journal
from agent.consul.embedded.state import Rejected
from agent.consul.embedded.store import Store
from agent.consul.embedded.txn import TxnFailed
from agent.consul.embedded.waiting import until_changed

DEFAULT_WAIT = 300.0
MAX_WAIT = 600.0
MAX_BODY = 4 * 1024 * 1024
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """One store, its journal, and how requests meet them."""

    def __init__(self, store: Store, journal: Journal | None, http_port: int) -> None:
        self.store = store
        self.http_port = http_port
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._journal = journal
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._writing: asyncio.Future[None] | None = None

    async def durable(self) -> None:
        """Everything that has changed so far is on disk. A failure ends the server: its memory is ahead of the disk."""
        if self._journal is None:
            self.store.take_changes()
            return
        if self.store.changes:
            loop = asyncio.get_running_loop()
            self._writing = loop.run_in_executor(self._writer, self._journal.write, self.store.take_changes())
        try:
            if self._writing is not None:
                await asyncio.shield(self._writing)
        except (sqlite3.Error, OSError) as error:
            if not self.failed.done():
                self.failed.set_result(f"cannot write {self._journal.path}: {error}")
            raise Rejected(500, "the journal cannot be written") from error

    async def keep_time(self) -> None:
        """Sessions and checks end when they are due, also when nobody asks."""
        while True:
            self.store.advance()
            try:
                await self.durable()
            except Rejected:
                return  # `failed` says so, and ends the server
            due = self.store.next_due()
            await asyncio.sleep(0.25 if due is None else min(0.25, max(0.005, due - self.store.now())))

    def close(self) -> None:
        self._writer.shutdown(wait=True)
        if self._journal is not None:
            self._journal.close()

    async def read(
        self,
        request: web.Request,
        relevant: Callable[[Kind, str], bool],
        index: Callable[[], int],
        answer: Callable[[], Any],
    ) -> web.Response:
        """Answer a question once what it is about has an index above the one asked with, or its wait is over."""
        asked, wait = _number(request, "index"), _wait(request)
        wait += random.uniform(0, wait / 16)
        await until_changed(self.store, relevant, index, asked, wait)
        await self.durable()
        body = answer()
        if "filter" in request.query:
            wanted = filters.parse(request.query["filter"])
            body = (
                [row for row in body if wanted(row)]
                if isinstance(body, list)
                else {name: row for name, row in body.items() if wanted(row)}
            )
        return self.answer(body, index())

    def answer(self, body: Any, index: int | None = None, status: int = 200) -> web.Response:
        headers = {
            "X-Consul-KnownLeader": "true",
            "X-Consul-LastContact": "0",
            "X-Consul-Effective-Consistency": "leader",
        }
        if index is not None:
            headers["X-Consul-Index"] = str(max(1, index))
        if isinstance(body, bytes):
            return web.Response(body=body, status=status, headers=headers, content_type="application/octet-stream")
        if body is None:
            return web.Response(status=status, headers=headers)
        return web.json_response(body, status=status, headers=headers)

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let time pass, keep web pages out, and turn refusals into Consul's answers."""
        try:
            # A browser sends Origin: a page somewhere must not be able to write here.
            if request.method != "GET" and "Origin" in request.headers:
                raise Rejected(403, "requests from web pages are refused")
            self.store.advance()
            response = await handler(request)
            await self.durable()
            return response
        except Rejected as error:
            return web.Response(status=error.status, text=error.text)
        except TxnFailed as error:
            errors = [{"OpIndex": at, "What": why} for at, why in error.errors]
            return web.json_response({"Results": None, "Errors": errors}, status=409)
        except web.HTTPNotFound:
            return web.Response(status=404, text=f"the embedded Consul has no {request.path}; a real Consul may")
        except web.HTTPException as error:
            return web.Response(status=error.status, text=error.reason)
        except (ValueError, TypeError, OverflowError) as error:
            return web.Response(status=400, text=f"Request decode failed: {error}")


async def body_json(request: web.Request) -> Any:
    text = await request.read()
    if not text:
        return {}
    try:
        return json.loads(text)
    except ValueError as error:
        raise Rejected(400, f"Request decode failed: {error}") from error


def number(request: web.Request, name: str) -> int | None:
    """A parameter that is a number, or None when it is not given."""
    return _number(request, name) if name in request.query else None


def _number(request: web.Request, name: str) -> int:
    text = request.query.get(name) or "0"
    if not (text.isascii() and text.isdigit()):
        raise Rejected(400, f"Invalid {name}")
    return int(text)


def _wait(request: web.Request) -> float:
    text = request.query.get("wait", "")
    try:
        wait = seconds(text)
    except ValueError as error:
        raise Rejected(400, "Invalid wait time") from error
    return min(wait or DEFAULT_WAIT, MAX_WAIT)
