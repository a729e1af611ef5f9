"""The controller as a component: it leads, another one stands by, and stopping it gives up leadership."""

from __future__ import annotations

import asyncio
import json
import shutil
import urllib.request
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from agent import keys
from agent.consul.address import Address
from agent.consul.client import ConsulClient
from agent.sdk import ObjectState, SettingsError
from agent.sdk.testing import running
from reconciler.components import folder
from tests.conftest import ConsulServer
from tests.reconciler.source.repos import git

PACKAGE = folder("node-manager")


@pytest.fixture
def cluster() -> str:
    return f"c{uuid.uuid4().hex[:8]}"


@pytest.fixture
def document(cluster: str, tmp_path: Path) -> Path:
    """A Cluster document in a Git repository of its own."""
    work = tmp_path / "work"
    (work / "live").mkdir(parents=True)
    git("init", "-q", "-b", "main", ".", cwd=work)
    made = work / "live" / "cluster.yaml"
    made.write_text(
        f"apiVersion: tdie/v1\nkind: Cluster\nmetadata: {{name: {cluster}}}\n"
        "spec: {nodes: [{name: a}], source: {allowEmpty: true}}\n"
    )
    git("add", ".", cwd=work)
    git("commit", "-q", "-m", "one node", cwd=work)
    return made


@pytest.fixture
async def consul(consul_server: ConsulServer) -> AsyncIterator[ConsulClient]:
    client = ConsulClient(Address.parse(consul_server.http))
    yield client
    await client.close()


def managing(name: str, where: object, consul_server: ConsulServer, api: int, **settings: Any) -> Any:
    given = {"masterConfigurationFile": str(where), "consul": consul_server.http, "port": api, "syncInterval": 200}
    return running(PACKAGE, {**given, **settings}, name=name)


async def leads(consul: ConsulClient, cluster: str) -> str:
    """The name of the controller that holds the lock; empty when none does."""
    entry = await consul.get(keys.leader(cluster))
    return str(json.loads(entry.value)["name"]) if entry is not None and entry.session is not None else ""


async def eventually(consul: ConsulClient, cluster: str, name: str) -> None:
    for _ in range(400):
        if await leads(consul, cluster) == name:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{await leads(consul, cluster)!r} leads, not {name!r}")


async def until_said(port: int, text: str, at: str = "/api/master/status") -> None:
    """What the controller says there mentions the text."""
    for _ in range(400):
        if text in await asyncio.to_thread(asked, port, at):
            return
        await asyncio.sleep(0.05)
    raise AssertionError(await asyncio.to_thread(asked, port, at))


def asked(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return str(answer.read().decode())


def commit_two_nodes(document: Path) -> None:
    document.write_text(document.read_text().replace("{name: a}", "{name: a}, {name: b}"))
    git("commit", "-qam", "two nodes", cwd=document.parent)


async def test_it_leads_and_gives_up_leadership_when_it_is_stopped(
    cluster: str,
    document: Path,
    consul_server: ConsulServer,
    consul: ConsulClient,
    free_port: Callable[[], int],
) -> None:
    port = free_port()
    async with managing("node-manager.0", document, consul_server, port) as first:
        await eventually(consul, cluster, "node-manager.0")
        async with managing("node-manager.1", document, consul_server, free_port()) as second:
            await until_said(port, '"leading":true', "/readyz")
            await first.component.stop()
            await eventually(consul, cluster, "node-manager.1")
            assert second.state is ObjectState.STARTED
        assert first.cause == ""
    assert await leads(consul, cluster) == ""


async def test_it_follows_git_at_its_own_interval(
    cluster: str,
    document: Path,
    consul_server: ConsulServer,
    consul: ConsulClient,
    free_port: Callable[[], int],
) -> None:
    repository, port = document.parents[1], free_port()
    async with managing("nm.0", f"file://{repository}", consul_server, port, cluster=cluster) as run:
        await eventually(consul, cluster, "nm.0")
        await until_said(port, "one node")
        await asyncio.to_thread(commit_two_nodes, document)
        await until_said(port, "two nodes")
        assert run.state is ObjectState.STARTED


async def test_where_it_should_look_must_be_clear(
    document: Path, consul_server: ConsulServer, free_port: Callable[[], int], tmp_path: Path
) -> None:
    shutil.copy(document, tmp_path / "alone.yaml")
    (document.parent / "other.yaml").write_text("a: 1\n")
    for where, settings, why in (
        ("ssh://git:hunter2@host/repo.git", {}, "say which 'cluster' it holds"),
        (document.parents[1], {}, "say which 'cluster' it holds"),
        (tmp_path / "nothing.yaml", {}, "cannot be read: No such file"),
        (tmp_path / "alone.yaml", {}, "is in no Git repository"),
        (document.parent / "other.yaml", {}, "does not hold one Cluster document"),
        (document, {"cluster": "another"}, "the setting 'cluster' says another"),
        (document, {"port": 70000, "syncInterval": -1}, "sync_interval"),
    ):
        with pytest.raises(SettingsError, match=why) as told:
            async with managing("nm.0", where, consul_server, free_port(), **settings):
                pass
        assert "hunter2" not in str(told.value)
