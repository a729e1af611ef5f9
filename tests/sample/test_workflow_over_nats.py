"""The sample's workflow over NATS JetStream: only its YAML is another one. The hosts run in this process."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.components import folder
from agent.host.host import Host
from agent.host.states import HostState
from agent.keeper.protocol import Code, HostOrder
from reconciler.model.documents import Instance
from tests.brokers import Server, nats

SAMPLE = Path(__file__).resolve().parents[2] / "sample-repo"


@pytest.fixture
def server(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Server]:
    made = nats(tmp_path, free_port())
    made.start()
    yield made
    made.stop()


def _over_nats(text: str, server: Server, place: Path) -> list[Instance]:
    """The sample's documents with every publisher a nats one, and one for the writer, so that it receives from there too."""
    documents = []
    for raw in yaml.safe_load_all(text.replace("/tmp/tdie-sample", str(place))):
        publisher = raw["spec"].setdefault("publisher", {"settings": {"topic": "nowhere"}})
        publisher["package"] = "nats@^1.0"
        publisher["settings"] |= {"servers": f"nats://127.0.0.1:{server.port}", "jetStream": True}
        documents.append(Instance.model_validate(raw))
    return documents


def _code(reference: str, settings: dict[str, Any]) -> Code:
    name = reference.split("@")[0]
    own = SAMPLE / "packages" / name
    root = own if own.is_dir() else folder(name)
    manifest = json.loads((root / "manifest.json").read_text())
    effective = {**manifest.get("defaultConfiguration", {}), **settings}
    content = root / manifest["contentRoot"]
    return Code(name, manifest["version"], "d", str(content), manifest["componentType"], effective)


def _order(document: Instance) -> HostOrder:
    name, spec = document.metadata.name, document.spec
    assert spec.publisher is not None
    return HostOrder(
        f"{name}.0", name, "a", "s", "python", _code(spec.package, spec.settings),
        publisher=_code(spec.publisher.package, spec.publisher.settings),
        subscriptions=tuple((s.topic, s.type) for s in spec.subscribe),
    )  # fmt: skip


@asynccontextmanager
async def _running(orders: list[HostOrder]) -> AsyncIterator[None]:
    path, hosts = list(sys.path), [Host(order, lambda: None) for order in orders]
    modules = set(sys.modules)
    try:
        for host in hosts:
            await host.start()
        yield
        assert {host.state for host in hosts} == {HostState.STARTED}, [host.cause for host in hosts]
    finally:
        for host in reversed(hosts):
            await host.destroy()
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if name.startswith("tdie_") or name in ("file_processor", "database_writer"):
                del sys.modules[name]


def _rows(place: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(place / "results.sqlite", timeout=10)) as db:
        return db.execute("SELECT file, content FROM processed ORDER BY file").fetchall()


async def test_a_file_becomes_a_row_over_nats(server: Server, tmp_path: Path) -> None:
    place = tmp_path / "place"
    (place / "intake").mkdir(parents=True)
    documents = _over_nats((SAMPLE / "instances/workflow.yaml").read_text(), server, place)
    orders = {order.instance: order for order in map(_order, documents)}
    async with _running([orders[name] for name in ("writer", "processor", "intake")]):
        for number in range(20):
            (place / "intake" / f"{number:02}.txt").write_text(f" file {number}")
        (place / "intake" / "odd.bin").write_bytes(b"\xff\xfe\xfd")
        async with asyncio.timeout(40):
            while len(_rows(place)) < 20 or not (place / "intake/error/odd.bin").exists():
                await asyncio.sleep(0.05)
    assert _rows(place) == [(f"{number:02}.txt", f"FILE {number}") for number in range(20)]
