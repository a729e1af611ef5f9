"""What one component costs on a node: the install of a large package, settings in place, another version, and memory of each kind
of host: `python -m tests.bench components`."""

from __future__ import annotations

import asyncio
import functools
import http.server
import json
import os
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx

from agent.keeper.client import KeeperClient
from agent.keeper.ensure import ensure_keeper
from agent.keeper.protocol import Code, HostOrder, HostRow
from agent.packages.digest import Content, content_digest
from agent.packages.environments import Environments
from agent.packages.install import PackageInstaller
from agent.packages.pack import pack
from agent.packages.protocol import Installed
from agent.packages.records import PackageRecords
from agent.packages.store import PackageStore
from agent.wire import PackageOrder, PackageRef
from tests.bench import figures
from tests.bench.bench_hosts import MODULE, Watched, pss
from tests.wheels import wheel

FILES, SIZE = 50, 1_000_000  # bytes of each: 50 MB that no compression makes smaller
INSTALLS, CHANGES, ALIVE = 5, 30, 20
NEEDS = "tdiebench==1.0"


def _large(version: str) -> Content:
    manifest = {"name": "large", "version": version, "runtime": "exec", "command": ["sleep", "9"]}
    noise = random.Random(version)
    files = {f"content/{number}.bin": (noise.randbytes(SIZE), False) for number in range(FILES)}
    return {"manifest.json": (json.dumps(manifest).encode(), False), **files}


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _plainly(file: Path, data: bytes) -> float:
    """Milliseconds in which the same bytes are written to one file and are on disk."""
    began = time.perf_counter()
    with file.open("wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    return (time.perf_counter() - began) * 1000


async def _installs(root: Path) -> None:
    store, environments = PackageStore(root / "packages"), Environments(root / "environments")
    store.open()
    environments.open()
    records = PackageRecords(root / "packages.sqlite")
    took, plain = [], []
    (root / "served").mkdir()
    with _served(root / "served") as url:
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            installer = PackageInstaller(store, environments, records, client, wall=time.time)
            for number in range(INSTALLS):
                content = _large(f"1.0.{number}")
                archive = pack(content)
                (root / "served" / str(number)).write_bytes(archive)
                ref = PackageRef(name="large", version=f"1.0.{number}", digest=content_digest(content))
                began = time.perf_counter()
                await installer.install(PackageOrder(package=ref, sources=(f"{url}/{number}",)))
                took.append((time.perf_counter() - began) * 1000)
                plain.append(_plainly(root / "plain", archive))
    figures.line("50 MB package: fetched, verified, installed, on disk", took, "ms")
    figures.line("… the same bytes written to one file and synced", plain, "ms")


def _kinds(root: Path) -> dict[str, HostOrder]:
    """One order of each kind of host."""
    (root / "tdie_bench_idle.py").write_text(MODULE)
    (root / "dependencies").mkdir()
    file, data = wheel("tdiebench", "1.0", {"tdiebench.py": ""})
    (root / "dependencies" / file).write_bytes(data)
    environments = Environments(root / "environments")
    environments.open()
    needing = Installed(PackageRef(name="idle", version="1.0.0", digest="0" * 64), str(root), dependencies=(NEEDS,))
    python = environments.make([needing])
    code = Code("idle", "1.0.0", "0" * 64, str(root), "tdie_bench_idle:Idle")
    fork = HostOrder("fork.0", "fork", "bench", "spec", "python", code, log=str(root / "log"))
    return {
        "fork": fork,
        "venv": replace(fork, replica="venv.0", python=python),
        "exec": replace(fork, replica="exec.0", runtime="exec", command=("sleep", "9999")),
    }


async def _well(watched: Watched, order: HostOrder) -> float:
    def fits(rows: dict[str, HostRow]) -> bool:
        row = rows.get(order.replica)
        return row is not None and row.healthy and row.spec_hash == order.spec_hash

    return await watched.until(fits)


async def _hosts(keeper: KeeperClient, watched: Watched, root: Path) -> None:
    for kind, order in (await asyncio.to_thread(_kinds, root)).items():
        started, alive = [], [replace(order, replica=f"{kind}.{number}") for number in range(ALIVE)]
        for one in alive:
            began = time.perf_counter()
            await keeper.start(one)
            started.append((await _well(watched, one) - began) * 1000)
        figures.line(f"{kind}: start asked → healthy told", started, "ms")
        memory = [pss(row.pid) for name, row in watched.rows.items() if name.startswith(kind) and row.pid]
        figures.line(f"{kind}: PSS of an idle host, {ALIVE} alive", memory, "MiB")
        in_place, replaced = [], []
        for number in range(CHANGES):
            settings = {"number": number}
            changed = replace(
                alive[0], spec_hash=f"in place {number}", component=replace(order.component, settings=settings)
            )
            began = time.perf_counter()
            await keeper.reconfigure(changed)
            in_place.append((await _well(watched, changed) - began) * 1000)
            other = replace(
                alive[1], spec_hash=f"version {number}", component=replace(order.component, digest=f"{number:064}")
            )
            began = time.perf_counter()
            await keeper.stop(other.replica)
            await watched.until(lambda rows, name=other.replica: rows[name].state == "Stopped")  # type: ignore[misc]
            await keeper.start(other)
            replaced.append((await _well(watched, other) - began) * 1000)
        figures.line(f"{kind}: other settings → healthy", in_place, "ms")
        figures.line(f"{kind}: stopped and another version healthy", replaced, "ms")
        await asyncio.gather(*(keeper.stop(one.replica) for one in alive))


async def _measure(root: Path) -> None:
    await _installs(root)
    keeper = await ensure_keeper(root / "data")
    watched = Watched(keeper)
    async with asyncio.TaskGroup() as tasks:
        following = tasks.create_task(watched.follow(), name="rows")
        try:
            await _hosts(keeper, watched, root)
        finally:
            following.cancel()
            await keeper.shutdown()


def main() -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory(prefix="tdie-bench-") as folder:
        asyncio.run(_measure(Path(folder)))
