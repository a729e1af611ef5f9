"""HTTP checks of the embedded Consul: asked at their interval, each by a task of its own."""

from __future__ import annotations

import asyncio
import random

import aiohttp

from agent.consul.embedded.base import Kind
from agent.consul.embedded.state import Check
from agent.consul.embedded.store import Store

OUTPUT = 4096  # bytes of an answer kept, as in Consul


async def poll_http_checks(store: Store) -> None:
    """Run until cancelled: every registered HTTP check is polled, whatever its target does."""
    changed = asyncio.Event()

    def listen(kind: Kind, name: str) -> None:
        if kind == "check":
            changed.set()

    running: dict[str, tuple[tuple[object, ...], asyncio.Task[None]]] = {}
    store.listeners[listen] = None
    try:
        async with aiohttp.ClientSession(trust_env=False) as http, asyncio.TaskGroup() as tasks:
            while True:
                wanted = {check.id: check for check in store.checks.values() if check.http}
                for name in [name for name in running if name not in wanted or running[name][0] != _same(wanted[name])]:
                    running.pop(name)[1].cancel()
                for name, check in wanted.items():
                    if name not in running:
                        task = tasks.create_task(_poll(store, http, check), name=f"check {name}")
                        running[name] = (_same(check), task)
                changed.clear()
                await changed.wait()
    finally:
        store.listeners.pop(listen, None)


def _same(check: Check) -> tuple[object, ...]:
    return (check.http, check.method, check.interval, check.timeout, str(check.header))


async def _poll(store: Store, http: aiohttp.ClientSession, check: Check) -> None:
    await asyncio.sleep(random.uniform(0, min(1.0, check.interval)))
    while True:
        status, output = await _ask(http, check)
        store.observe(check.id, status, output)
        await asyncio.sleep(check.interval)


async def _ask(http: aiohttp.ClientSession, check: Check) -> tuple[str, str]:
    """Consul's rule: 2xx is passing, 429 a warning, everything else critical."""
    headers = [(name, value) for name, values in check.header.items() for value in values]
    timeout = aiohttp.ClientTimeout(total=check.timeout)
    try:
        async with http.request(check.method, str(check.http), headers=headers, timeout=timeout) as answer:
            body = (await answer.content.read(OUTPUT)).decode(errors="replace")
            said = f"HTTP {check.method} {check.http}: {answer.status} {answer.reason} Output: {body}"
            if 200 <= answer.status < 300:
                return "passing", said
            return ("warning" if answer.status == 429 else "critical"), said
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        return "critical", f"HTTP {check.method} {check.http}: {error or type(error).__name__}"
