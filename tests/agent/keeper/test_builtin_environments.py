"""Built-in packages with dependencies in an environment of their own, as machines run them, against real servers."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.components import folder
from agent.keeper.protocol import Code
from agent.packages.environments import Environments
from agent.packages.protocol import Installed
from agent.wire import PackageRef
from tests.brokers import Server, mosquitto, nats, rabbitmq
from tests.wheels import wheels_of_installed

Rig = Any
Make = Callable[[Installed], str]

ECHO = """
from agent.sdk import Component, Message, MessagePublisher, Settings, periodic

class Echo(Component):
    def __init__(self, publisher: MessagePublisher) -> None:
        self._publisher = publisher

    async def start(self):
        self.spawn(periodic(self._say, 0.1), name="say")  # until the broker knows who listens

    async def _say(self):
        await self._publisher.publish(Message("hello from its own environment", type="Greeting"))

    async def receive(self, message):
        self.log.info("received %s", message.content)
"""


def installed(name: str) -> tuple[Installed, Code]:
    """A built-in package as if it had been installed, and what a host runs of it."""
    manifest = json.loads((folder(name) / "manifest.json").read_text())
    content = str(folder(name) / manifest["contentRoot"])
    ref = PackageRef(name=name, version=manifest["version"], digest=name.encode().hex().ljust(64, "0")[:64])
    code = Code(name, ref.version, ref.digest, content, manifest["componentType"], manifest["defaultConfiguration"])
    return Installed(ref, content, dependencies=tuple(manifest["dependencies"])), code


@pytest.fixture
def make(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes environments from wheels in a folder: no registry is asked."""
    wheels, empty = tmp_path / "wheels", tmp_path / "index"
    wheels.mkdir()
    empty.mkdir()
    monkeypatch.setenv("UV_DEFAULT_INDEX", empty.as_uri())
    monkeypatch.setenv("UV_FIND_LINKS", str(wheels))
    environments = Environments(tmp_path / "environments")
    environments.open()

    def made(item: Installed) -> str:
        wheels_of_installed(item.dependencies, wheels)
        return environments.make([item])

    return made


@contextmanager
def listening(server: Server) -> Iterator[Server]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def broker(name: str, folder: Path, port: int) -> Iterator[tuple[Server, str]]:
    """A broker that listens, and the setting that says where."""
    made: dict[str, Callable[[Path, int], Server]] = {"nats": nats, "mqtt": mosquitto}
    with rabbitmq() if name == "amqp" else listening(made[name](folder, port)) as server:
        yield server, "servers" if name == "nats" else "server"


@pytest.mark.parametrize(
    "name",
    [
        "nats",
        pytest.param("mqtt", marks=pytest.mark.server("mosquitto")),
        pytest.param("amqp", marks=pytest.mark.server("rabbitmq-server")),
    ],
)
async def test_a_broker_s_publisher_sends_and_delivers(
    name: str, rig: Rig, make: Make, tmp_path: Path, free_port: Callable[[], int]
) -> None:
    (tmp_path / "echo").mkdir()
    (tmp_path / "echo/tdie_test_echo.py").write_text(ECHO)
    package, code = installed(name)
    python = await asyncio.to_thread(make, package)
    with broker(name, tmp_path, free_port()) as (server, where):
        settings = {**code.settings, "topic": "greetings", where: f"{name}://127.0.0.1:{server.port}"}
        echo = Code("echo", "1.0.0", "e" * 64, str(tmp_path / "echo"), "tdie_test_echo:Echo")
        order = rig.order(
            "echo.0", component=echo, publisher=replace(code, settings=settings), python=python,
            subscriptions=(("greetings", ""),),
        )  # fmt: skip
        await rig.started(order)
        await rig.until(lambda: "received hello from its own environment" in Path(order.log).read_text())


async def test_database_replication_copies_a_table(rig: Rig, make: Make, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "from.db")) as db, db:
        db.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, text VARCHAR)")
        db.execute("INSERT INTO orders VALUES (1, 'one')")
    package, code = installed("database-replication")
    python = await asyncio.to_thread(make, package)
    settings = {
        "source": f"sqlite:///{tmp_path}/from.db",
        "target": f"sqlite:///{tmp_path}/to.db",
        "tables": ["orders"],
    }
    await rig.started(
        rig.order("copy.0", component=replace(code, settings={**code.settings, **settings}), python=python)
    )

    def rows() -> list[tuple[int, str]]:
        with closing(sqlite3.connect(tmp_path / "to.db")) as db:
            there = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'orders'").fetchone()
            return db.execute("SELECT id, text FROM orders").fetchall() if there else []

    await rig.until(lambda: rows() == [(1, "one")])
