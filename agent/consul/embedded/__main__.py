"""`python -m agent.consul.embedded`: one Consul API server on this machine, until SIGTERM or SIGINT."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from agent.consul.embedded.http import Server
from agent.consul.embedded.journal import Journal
from agent.consul.embedded.probes import poll_http_checks
from agent.consul.embedded.routes import application
from agent.consul.embedded.store import Store
from agent.errors import Invalid, TdieError

log = structlog.get_logger()


def run(arguments: list[str] | None = None) -> int:
    """Serve until told to stop; 0 then, 1 when the store or the port cannot be used, 64 for a wrong option."""
    parser = argparse.ArgumentParser(prog="python -m agent.consul.embedded", description=__doc__)
    parser.add_argument("--data", type=Path, help="sqlite file to keep everything in; without it nothing is kept")
    parser.add_argument("--http-port", type=int, required=True)
    parser.add_argument("--bind", default="127.0.0.1")
    parser.add_argument("--node", default="embedded", help="name of the one node in the catalog")
    parser.add_argument("--session-ttl-min", type=float, default=10.0, help="seconds; as session_ttl_min of Consul")
    try:
        options = parser.parse_args(arguments)
    except SystemExit as ended:
        return 64 if ended.code else 0  # argparse says 2, which elsewhere means "there are changes"
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        asyncio.run(serve(options.data, options.bind, options.http_port, options.node, options.session_ttl_min))
    except TdieError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


async def serve(data: Path | None, bind: str, port: int, node: str, session_ttl_min: float) -> None:
    """Answer on bind:port until a signal. Raises Invalid when the store or the port cannot be used."""
    store = Store(lambda: time.clock_gettime(time.CLOCK_BOOTTIME), node=node, session_ttl_min=session_ttl_min)
    journal = None
    if data is not None:
        journal, rows = await asyncio.to_thread(Journal.open, data)
        store.load(rows)
    server = Server(store, journal, port)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for each in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(each, stop.set)
    # A watcher that goes away must not keep its wait here.
    runner = web.AppRunner(application(server), access_log=None, handler_cancellation=True, shutdown_timeout=0.5)
    try:
        await runner.setup()
        try:
            await web.TCPSite(runner, bind, port).start()
        except OSError as error:
            raise Invalid(f"cannot listen on {bind}:{port}: {error.strerror}", code="PORT_TAKEN") from error
        log.info("embedded consul ready", bind=bind, port=port, data=str(data or "memory only"))
        async with asyncio.TaskGroup() as tasks:
            owned = [
                tasks.create_task(server.keep_time(), name="time"),
                tasks.create_task(poll_http_checks(store), name="http checks"),
            ]
            stopping = tasks.create_task(stop.wait(), name="stop")
            ends: tuple[asyncio.Future[Any], ...] = (stopping, server.failed, *owned)
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for task in (*owned, stopping):
                task.cancel()
        if server.failed.done():
            raise Invalid(server.failed.result(), code="STORE_UNWRITABLE")
    finally:
        await runner.cleanup()
        server.close()


if __name__ == "__main__":
    sys.exit(run())
