"""The machine below an agent: free ports, probes, and figures about load, memory and processes."""

from __future__ import annotations

import asyncio
import os
import platform
import random
import shlex
import socket
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil

from agent.errors import Waiting
from agent.wire import HealthCheck

FIRST_PORT, LAST_PORT = 5000, 32_767  # below what the kernel hands out to clients
RESERVED = frozenset({5060, 5061, 5100, 5432, 5671, 5672, 5900, 6000, 6379, 7777, 8300, 8301, 8302, 8500, 8501, 8600})


class MachinePorts:
    """Implements Ports by trying to listen. A chosen port is also claimed, so that agents of one machine never choose alike.

    The claim is the name of an abstract socket: it needs no file, and ends with this process.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._host = host
        self._claims: dict[int, socket.socket] = {}

    def choose(self, preferred: int | None, taken: Collection[int]) -> int:
        for port in [port for port in self._claims if port not in taken and port != preferred]:
            self._claims.pop(port).close()
        if preferred and preferred not in taken and listens_nobody(self._host, preferred) and self._claim(preferred):
            return preferred
        for port in range(FIRST_PORT, LAST_PORT):
            free = port not in taken and port not in RESERVED and listens_nobody(self._host, port)
            if free and self._claim(port):
                return port
        raise Waiting("no free port is left on this machine", code="NO_PORT")

    def _claim(self, port: int) -> bool:
        """Whether no other agent of this machine has this port in mind."""
        if port in self._claims:
            return True
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0tdie-port-{port}")
        except OSError:
            claim.close()
            return False
        self._claims[port] = claim
        return True


def listens_nobody(host: str, port: int) -> bool:
    """Whether we could listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


class MachineProber:
    """Implements Prober: HTTP, TCP, or a command that exits with 0."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def probe(self, check: HealthCheck, port: int, env: Mapping[str, str]) -> str:
        try:
            async with asyncio.timeout(check.timeout):
                match check.kind:
                    case "http":
                        return await self._http(check.target, port)
                    case "tcp":
                        return await _tcp(check.target, port)
                    case "exec":
                        return await _exec(check.target, port, env)
                    case "none" | "component":
                        return ""
        except TimeoutError:
            return f"{check.kind} {check.target}: no answer in {check.timeout:g} s"

    async def _http(self, target: str, port: int) -> str:
        url = target if "://" in target else f"http://127.0.0.1:{port}/{target.lstrip('/')}"
        try:
            answer = await self._client.get(url)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return f"http {target}: {type(error).__name__}"
        return "" if answer.is_success else f"http {target}: answers {answer.status_code}"


async def _tcp(target: str, port: int) -> str:
    host, _, number = target.rpartition(":")
    try:
        _, writer = await asyncio.open_connection(host or "127.0.0.1", int(number or port))
    except (OSError, ValueError) as error:
        return f"tcp {target or port}: {error}"
    writer.close()
    return ""


async def _exec(target: str, port: int, env: Mapping[str, str]) -> str:
    try:
        words = shlex.split(target)
        process = await asyncio.create_subprocess_exec(
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), **env, "PORT": str(port)},
        )
    except (OSError, ValueError, TypeError) as error:
        return f"exec {target}: {error}"
    try:
        status = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return "" if status == 0 else f"exec {target}: exit status {status}"


def boot_id() -> str:
    """Another text after each boot of this machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def new_id() -> str:
    """A text nobody else has."""
    return uuid.uuid4().hex


def uniform(low: float, high: float) -> float:
    """A random number between two."""
    return random.uniform(low, high)


def figures(data: Path) -> dict[str, Any]:
    """Environment, load, memory, disk and network of this machine; bytes, seconds, percent. Blocking for a moment."""
    memory, disk = psutil.virtual_memory(), psutil.disk_usage(str(data))
    own = psutil.Process()
    return {
        "environment": {
            "host": platform.node(),
            "system": platform.platform(),
            "python": platform.python_version(),
            "cpus": psutil.cpu_count() or 1,
            "bootTime": psutil.boot_time(),
        },
        "load": dict(zip(("1m", "5m", "15m"), psutil.getloadavg(), strict=True)),
        "cpuPercent": psutil.cpu_percent(),
        "memory": {"total": memory.total, "available": memory.available},
        "disk": {"total": disk.total, "free": disk.free},
        "agent": {"pid": own.pid, "memory": own.memory_info().rss, "cpuSeconds": sum(own.cpu_times()[:2])},
        "networkInterfaces": {
            name: [a.address for a in addresses if a.family in (socket.AF_INET, socket.AF_INET6)]
            for name, addresses in psutil.net_if_addrs().items()
        },
        "network": {
            name: {"bytesSent": each.bytes_sent, "bytesReceived": each.bytes_recv, "errors": each.errin + each.errout}
            for name, each in psutil.net_io_counters(pernic=True).items()
        },
    }


def process_figures(pids: Collection[int]) -> dict[int, dict[str, float]]:
    """CPU seconds, memory and threads of those processes that still exist."""
    found = {}
    for pid in pids:
        try:
            process = psutil.Process(pid)
            with process.oneshot():
                found[pid] = {
                    "memory": process.memory_info().rss,
                    "cpuSeconds": round(sum(process.cpu_times()[:2]), 3),
                    "threads": process.num_threads(),
                }
        except psutil.Error:
            continue  # it ended meanwhile, or is not ours to look at
    return found
