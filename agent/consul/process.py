"""A Consul server as a child process of ours: started on ports that are free, awaited until it answers, stopped by its pid."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.consul.address import DEFAULT_PORT, Address
from agent.consul.client import ConsulClient
from agent.errors import TdieError, Waiting

READY_WITHIN = 20.0
STOP_WITHIN = 5.0
LOOPBACK = "127.0.0.1"


@dataclass(slots=True)
class Running:
    """A server that answers."""

    address: Address
    process: asyncio.subprocess.Process
    log: Path


def free_port(wanted: int = 0) -> int:
    """A TCP port of loopback nobody listens on now: the wanted one if it is free."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise Waiting("no TCP port is free on 127.0.0.1", code="NO_PORT")


def free_ports(count: int) -> list[int]:
    """Different free ports: all are held until the last is found."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind((LOOPBACK, 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def dev_command(binary: str | Path, http_port: int, node: str, *, ui: bool = True) -> list[str]:
    """`consul agent -dev` on loopback with every port free, so that it meets no other Consul."""
    server, lan, wan = free_ports(3)
    return [
        str(binary), "agent", "-dev", f"-node={node}", f"-bind={LOOPBACK}", f"-client={LOOPBACK}",
        f"-http-port={http_port}", f"-server-port={server}", f"-serf-lan-port={lan}", f"-serf-wan-port={wan}",
        "-dns-port=-1", "-grpc-port=-1", "-disable-host-node-id", *(["-ui"] if ui else []),
    ]  # fmt: skip


def embedded_command(data: Path | None, http_port: int, node: str) -> list[str]:
    kept = ["--data", str(data)] if data else []
    return [sys.executable, "-m", "agent.consul.embedded", *kept, "--http-port", str(http_port), "--node", node]


@asynccontextmanager
async def running(
    command: Sequence[str], http_port: int, node: str, log: Path, *, within: float = READY_WITHIN
) -> AsyncIterator[Running]:
    """The server runs, is the one that was started, and has a leader; it is gone on exit.

    Raises Waiting with the end of its log when it does not come up in time.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        # A session of its own: Ctrl-C on our terminal must let us stop it last, after everything that needs it.
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            env={name: value for name, value in os.environ.items() if not name.startswith("CONSUL_")},
        )  # fmt: skip
    address = Address(LOOPBACK, http_port)
    try:
        await _ready(process, address, node, log, within)
        yield Running(address, process, log)
    finally:
        await stop(process)


async def _ready(process: asyncio.subprocess.Process, address: Address, node: str, log: Path, within: float) -> None:
    client = ConsulClient(address, rpc_timeout=1.0)
    last = "it said nothing"
    try:
        async with asyncio.timeout(within):
            while process.returncode is None:
                try:
                    # Somebody else's Consul may have taken the port first: the name tells.
                    about = await client.describe()
                    if f"node {node}," in about:
                        await client.ready(node)
                        return
                    last = f"another Consul answers there ({about})"
                except TdieError as error:
                    last = error.detail
                await asyncio.sleep(0.05)
    except TimeoutError:
        pass
    finally:
        await client.close()
    how = f"ended with status {process.returncode}" if process.returncode is not None else f"is not ready: {last}"
    raise Waiting(f"the Consul started at {address} {how}{_tail(log)}", code="CONSUL_NOT_STARTED", hint=f"log: {log}")


async def stop(process: asyncio.subprocess.Process) -> None:
    """The process is gone: asked first, then made to. By its pid only, which stays its own until it is reaped here."""
    if process.returncode is not None:
        return
    for number, within in ((signal.SIGTERM, STOP_WITHIN), (signal.SIGKILL, STOP_WITHIN)):
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        try:
            async with asyncio.timeout(within):
                await process.wait()
            return
        except TimeoutError:
            continue


def _tail(log: Path) -> str:
    try:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return ""
    return f"; its last words: {lines[-1].strip()[:300]}" if lines else ""


def find_binary(path: str | None) -> Path | None:
    """The `consul` program on a PATH, if there is one."""
    found = shutil.which("consul", path=path)
    return Path(found) if found else None


def preferred_http_port() -> int:
    """8500 when it is free, so that the `consul` program finds the server by itself; else any."""
    return free_port(DEFAULT_PORT)
