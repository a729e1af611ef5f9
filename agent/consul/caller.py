"""Asks one Consul: three pools of connections, deadlines, a token that may change, and only our own errors."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import Literal, TypeVar

import aiohttp
from consul import ConsulException

from agent.consul.address import Address, Tls, Token
from agent.consul.blocking import Pace, next_index, parse_index, server_wait, total_timeout
from agent.consul.connection import Connection
from agent.consul.errors import UNAVAILABLE, Answered, meaning, unreachable
from agent.errors import Waiting

T = TypeVar("T")
Pool = Literal["watch", "rpc", "renew"]
Question = Callable[[Connection], Awaitable[T]]


def _why(error: aiohttp.ClientError | OSError) -> str:
    """What went wrong with a connection, in the words of the system where there are any."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, OSError) and cause.errno and cause.errno > 0:  # asyncio writes sentences of its own there
        return os.strerror(cause.errno)
    return (cause.strerror if isinstance(cause, OSError) else "") or str(error) or type(error).__name__


class Caller:
    """One Consul and how to talk to it.

    Watches, ordinary calls and session renewals have pools of their own: a hundred waiting watches must not delay a write, and
    nothing may delay a renewal. Connections are made at the first call and belong to the running event loop.
    """

    def __init__(self, address: Address, token: Token, tls: Tls, rpc_timeout: float) -> None:
        self.address = address
        self._token = token
        self._tls = tls
        self._rpc_timeout = rpc_timeout
        self._pools: dict[Pool, Connection] = {}
        self._paces: dict[Hashable, Pace] = {}
        self._token_read = token.value is not None

    async def ask(self, doing: str, question: Question[T], *, pool: Pool = "rpc", timeout: float | None = None) -> T:
        """The answer to a question. Raises the errors of the Protocol; `doing` completes their "cannot …"."""
        if not self._token_read:
            await asyncio.to_thread(self._token.reread)
            self._token_read = True
        try:
            return await self._once(doing, question, pool, timeout or self._rpc_timeout)
        except Answered as answer:
            # The file may hold a newer token than the one that was just refused.
            if answer.status == 403 and await asyncio.to_thread(self._token.reread):
                try:
                    return await self._once(doing, question, pool, timeout or self._rpc_timeout)
                except Answered as again:
                    raise meaning(doing, again) from again
            raise meaning(doing, answer) from answer

    async def _once(self, doing: str, question: Question[T], pool: Pool, timeout: float) -> T:
        try:
            async with asyncio.timeout(timeout):
                return await question(self._pool(pool))
        except TimeoutError as error:
            raise unreachable(doing, str(self.address), f"no answer within {timeout:.0f} s") from error
        except (aiohttp.ClientError, OSError, ssl.SSLError) as error:
            raise unreachable(doing, str(self.address), _why(error)) from error
        except (ConsulException, AttributeError, KeyError, TypeError, ValueError) as error:
            # Half an answer, a proxy's page, another program on that port: nothing is known, least of all "empty".
            why = f"cannot {doing}: the answer of {self.address} makes no sense ({type(error).__name__}: {error})"
            raise Waiting(why[:400], code=UNAVAILABLE) from error

    def _pool(self, pool: Pool) -> Connection:
        if pool not in self._pools:
            self._pools[pool] = Connection(self.address, self._tls, self._token)
        return self._pools[pool]

    async def watch(
        self,
        doing: str,
        target: Hashable,
        index: int,
        wait: float,
        fetch: Callable[[Connection, int, str], Awaitable[tuple[str | None, T]]],
    ) -> tuple[int, T]:
        """Wait until what `fetch` reads has an index other than `index`, at most `wait` seconds; (new index, content).

        An index of 0 asks for what is there now. A wake-up without a change is waited out here, and questions that bring
        nothing new are spaced (2 at once, then one a second), whatever indexes Consul answers.
        """
        deadline = time.monotonic() + max(0.0, wait)
        pace = self._paces.setdefault(target, Pace())
        while True:
            now = time.monotonic()
            await asyncio.sleep(min(pace.delay(now), max(0.0, deadline - now)))
            left = max(0.0, deadline - time.monotonic())
            pace.delay(time.monotonic())
            pace.asked()

            async def question(connection: Connection, left: float = left) -> tuple[str | None, T]:
                return await fetch(connection, index, server_wait(left))

            timeout = total_timeout(left) if index else self._rpc_timeout
            header, content = await self.ask(doing, question, pool="watch", timeout=timeout)
            pace.answered(content)
            new = next_index(index, parse_index(header))
            if new != index or time.monotonic() >= deadline - 0.001:
                return new, content

    async def close(self) -> None:
        """Every connection is closed; a later call opens new ones."""
        pools, self._pools = list(self._pools.values()), {}
        for pool in pools:
            await pool.close()
