"""Messages of 1 KiB through the bus of a node and through NATS JetStream, on the same machine: `python -m tests.bench bus`.

A publisher keeps 1,000 messages in flight; a message is published when it is confirmed. The bus confirms what is on disk (fsync).
JetStream with file storage confirms before its fsync, which follows within two minutes, or with `sync_interval: always`, after it.
Received means that a consumer has taken and acknowledged all of them. The bus's own process and the client are two; so are NATS's.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import contextmanager
from pathlib import Path

import nats
from nats.js.api import ConsumerConfig

from agent.bus.client import BusPublisher, consume
from agent.consul.process import free_ports
from agent.sdk import Message
from tests.bench import figures
from tests.brokers import Server

COUNT, IN_FLIGHT = 15_000, 1000
BODY = "x" * 1024
ROUNDS = 3


async def _all(publish: Callable[[Message], Awaitable[object]], count: int) -> float:
    """Messages per second until all are confirmed."""
    left = iter(range(count))

    async def one_after_the_other() -> None:
        for _ in left:
            await publish(Message(BODY))

    began = time.perf_counter()
    await asyncio.gather(*(one_after_the_other() for _ in range(IN_FLIGHT)))
    return count / (time.perf_counter() - began)


@contextmanager
def _bus(folder: Path):  # type: ignore[no-untyped-def]
    command = [sys.executable, "-m", "tests.bench.bus_process", str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        yield folder / "bus.sock"
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(20)


async def _through_the_bus(folder: Path) -> tuple[float, float, float]:
    with _bus(folder) as socket:
        publisher = BusPublisher(socket)
        carrying = asyncio.create_task(publisher.run(), name="publisher")
        await publisher.publish(Message(BODY), "orders")  # connected
        published = await _all(lambda message: publisher.publish(message, "orders"), COUNT)
        got, done = 0, asyncio.Event()

        async def deliver(message: Message) -> None:
            nonlocal got
            got += 1
            if got == COUNT + 1:
                done.set()

        began = time.perf_counter()
        consuming = asyncio.create_task(consume(socket, deliver), name="consumer")
        await done.wait()
        received = COUNT / (time.perf_counter() - began)
        got = 0
        began = time.perf_counter()
        await _all(lambda message: publisher.publish(message, "orders"), COUNT + 1)
        await done.wait() if got < COUNT + 1 else None
        while got < COUNT + 1:
            await asyncio.sleep(0.001)
        both = (COUNT + 1) / (time.perf_counter() - began)
        for task in (carrying, consuming):
            task.cancel()
        await asyncio.gather(carrying, consuming, return_exceptions=True)
        return published, received, both


async def _through_jetstream(folder: Path, config: str) -> tuple[float, float]:
    (port,) = free_ports(1)
    (folder / "nats.conf").write_text(
        f'listen: "127.0.0.1:{port}"\njetstream {{\n store_dir: "{folder}/js"\n {config}\n}}\n'
    )
    binary = str(Path(sys.executable).parent / "nats-server")
    server = Server([binary, "-c", str(folder / "nats.conf")], port, folder / "nats.log")
    server.start()
    try:
        client = await nats.connect(f"nats://127.0.0.1:{port}")
        stream = client.jetstream(timeout=60)
        await stream.add_stream(name="BENCH", subjects=["orders"])

        async def publish(message: Message) -> None:
            await stream.publish("orders", message.to_json().encode(), headers={"Nats-Msg-Id": message.id})

        published = await _all(publish, COUNT)
        consumer = await stream.pull_subscribe("orders", "shop", config=ConsumerConfig(max_ack_pending=IN_FLIGHT))
        began, got = time.perf_counter(), 0
        while got < COUNT:
            for message in await consumer.fetch(256, timeout=20):
                Message.from_json(message.data)
                await message.ack()
                got += 1
        received = COUNT / (time.perf_counter() - began)
        await client.close()
        return published, received
    finally:
        server.stop()


def _print(what: str, values: list[float]) -> float:
    best = max(values)
    print(f"{what:<60} {best:>9.0f} /s   best of {len(values)}: {', '.join(f'{v:.0f}' for v in values)}", flush=True)
    return best


def main() -> None:
    """Print the figures."""
    bus, plain, always = [], [], []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(prefix="tdie-bench-") as folder:
            for name in ("bus", "plain", "always"):
                (Path(folder) / name).mkdir()
            bus.append(asyncio.run(_through_the_bus(Path(folder) / "bus")))
            plain.append(asyncio.run(_through_jetstream(Path(folder) / "plain", "")))
            always.append(asyncio.run(_through_jetstream(Path(folder) / "always", "sync_interval: always")))
    ours = _print("bus: published, on disk", [b[0] for b in bus])
    taken = _print("bus: received and acknowledged", [b[1] for b in bus])
    _print("bus: published, received and acknowledged at once", [b[2] for b in bus])
    late = _print("JetStream, file storage: published", [p[0] for p in plain])
    synced = _print("JetStream, file storage, sync_interval always: published", [a[0] for a in always])
    _print("JetStream: received and acknowledged", [p[1] for p in plain])
    theirs = max(p[1] for p in plain)
    for what, value in (
        ("bus / JetStream that syncs always, published", ours / synced),
        ("bus / JetStream that syncs later, published", ours / late),
        ("bus / JetStream, received", taken / theirs),
    ):
        print(f"{what:<60} {value:>9.2f}×", flush=True)
    figures.value("bus: one message on disk, nothing else to do", asyncio.run(_alone()), "ms")


async def _alone() -> float:
    """Milliseconds that one publish takes, median of 200."""
    with tempfile.TemporaryDirectory(prefix="tdie-bench-") as folder, _bus(Path(folder)) as socket:
        publisher = BusPublisher(socket)
        carrying = asyncio.create_task(publisher.run(), name="publisher")
        times = []
        for _ in range(200):
            began = time.perf_counter()
            await publisher.publish(Message(BODY), "orders")
            times.append((time.perf_counter() - began) * 1000)
        carrying.cancel()
        await asyncio.gather(carrying, return_exceptions=True)
        return figures.percentiles(times)[0]
