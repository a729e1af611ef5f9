"""What is left after a Consul stops, is killed, or finds its file damaged; and the `consul` program against the embedded one."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.consul.address import Address
from agent.consul.client import ConsulClient
from agent.consul.protocol import Check, CheckGone, Service, SessionGone
from agent.errors import Waiting

BEAT = "tdie/c/n1:beat"
SERVICE = Service("tdie/c/n1", "tdie-agent", meta={"tdie-cluster": "c"}, checks=(Check(BEAT, "beats", ttl=60),))


@pytest.fixture
def own_embedded(tmp_path: Path, make_consul: Any) -> Iterator[Any]:
    server = make_consul("embedded", tmp_path)
    server.start()
    yield server
    server.stop()


async def furnish(client: ConsulClient) -> str:
    """One locked key, one plain key, one service; the session."""
    await client.put("plain", b"kept")
    session = await client.session_create("holder", ttl=30, lock_delay=1)
    assert await client.acquire("lock", b"me", session)
    await client.register(SERVICE)
    await client.check_update(BEAT, "passing", "fine")
    return session


@pytest.mark.parametrize("kill", [False, True])
async def test_the_embedded_one_keeps_everything(own_embedded: Any, kill: bool) -> None:
    client = ConsulClient(Address.parse(own_embedded.http), rpc_timeout=2)
    session = await furnish(client)
    index, _ = await client.watch("plain", 0, 1)
    watching = asyncio.create_task(client.watch("plain", index, 30))
    await asyncio.sleep(0.1)
    await asyncio.to_thread(own_embedded.stop, kill=kill)
    with pytest.raises(Waiting):
        await watching
    with pytest.raises(Waiting):
        await client.get_all("")
    await asyncio.to_thread(own_embedded.start)
    kept = await client.get("plain")
    assert kept is not None
    assert (kept.value, kept.modify_index) == (b"kept", index)
    lock = await client.get("lock")
    assert lock is not None
    assert (lock.session, lock.lock_index) == (session, 1)
    await client.session_renew(session)
    await client.check_update(BEAT, "passing", "fine again")
    _, (entry,) = await client.watch_service("tdie-agent", "c", 0, 1)
    assert entry.passing
    await client.put("later", b"1")
    later = await client.get("later")
    assert later is not None
    assert later.modify_index > lock.modify_index
    await client.close()


@pytest.mark.consul
async def test_a_real_one_in_dev_mode_keeps_nothing(tmp_path: Path, make_consul: Any) -> None:
    server = make_consul("real", tmp_path)
    await asyncio.to_thread(server.start)
    client = ConsulClient(Address.parse(server.http), rpc_timeout=2)
    try:
        session = await furnish(client)
        for n in range(20):
            await client.put(f"more/{n}", b"")
        index, _ = await client.watch_all("", 0, 1)
        await asyncio.to_thread(server.stop, kill=True)
        with pytest.raises(Waiting):
            await client.session_renew(session)
        await asyncio.to_thread(server.start)
        # First the index goes back, then it is asked for anew: nothing is mistaken for a change after the old index.
        newer, found = await client.watch_all("", index, 0.5)
        assert (newer, found) == (0, ())
        with pytest.raises(SessionGone):
            await client.session_renew(session)
        with pytest.raises(CheckGone):
            await client.check_update(BEAT, "passing", "")
        assert await client.local_services() == {}
        await client.register(SERVICE)
        await client.check_update(BEAT, "passing", "back")
    finally:
        await client.close()
        await asyncio.to_thread(server.stop)


# ----------------------------------------------------------------------------------------------------- damaged files


def start_on(data: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agent.consul.embedded", "--data", str(data), "--http-port", "1"]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)


@pytest.mark.parametrize("damage", ["empty", "garbage", "torn", "page", "foreign", "row"])
def test_a_damaged_file_is_refused_and_left_alone(tmp_path: Path, make_consul: Any, damage: str) -> None:
    server = make_consul("embedded", tmp_path)
    server.start()
    for n in range(200):
        put = urllib.request.Request(f"http://{server.http}/v1/kv/k{n}", data=b"v" * 300, method="PUT")
        urllib.request.urlopen(put, timeout=5).close()
    server.stop()
    data = tmp_path / "consul.db"
    whole = data.read_bytes()
    if damage == "empty":
        data.write_bytes(b"")
    elif damage == "garbage":
        data.write_bytes(b"not a database at all" * 100)
    elif damage == "torn":
        data.write_bytes(whole[: len(whole) // 2])
    elif damage == "page":
        data.write_bytes(whole[:8192] + os.urandom(4096) + whole[12288:])
    else:
        sql = "PRAGMA application_id = 7" if damage == "foreign" else "UPDATE rows SET body = '{' WHERE id = 'k7'"
        script = f"import sqlite3, sys; d = sqlite3.connect(sys.argv[1]); d.execute({sql!r}); d.commit(); d.close()"
        subprocess.run([sys.executable, "-c", script, str(data)], check=True)
    broken = data.read_bytes()
    for _ in range(2):
        done = start_on(data)
        assert done.returncode == 1
        assert "STORE_DAMAGED" in done.stderr
        assert "Traceback" not in done.stderr
        assert data.read_bytes() == broken


def test_two_servers_do_not_share_a_file(own_embedded: Any, tmp_path: Path) -> None:
    done = start_on(tmp_path / "consul.db")
    assert done.returncode == 1
    assert "STORE_IN_USE" in done.stderr


def test_a_wrong_option_is_a_usage_error() -> None:
    for options in (["--nonsense"], ["--http-port", "x"], []):
        command = [sys.executable, "-m", "agent.consul.embedded", *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 64, done.stderr
        assert "usage:" in done.stderr


def test_a_taken_port_is_a_sentence(own_embedded: Any, tmp_path: Path) -> None:
    port = own_embedded.http.rpartition(":")[2]
    command = [sys.executable, "-m", "agent.consul.embedded", "--data", str(tmp_path / "b.db"), "--http-port", port]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 1
    assert "PORT_TAKEN" in done.stderr


# ------------------------------------------------------------------------------------------- other clients, odd requests


@pytest.mark.consul
def test_the_consul_program_works_against_the_embedded_one(consul_server: Any) -> None:
    def consul(*arguments: str) -> str:
        environ = {"CONSUL_HTTP_ADDR": consul_server.http, "PATH": os.environ["PATH"], "HOME": "/nonexistent"}
        command = [str(consul_server.binary), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environ, timeout=20, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    consul("kv", "put", "cli/a", "one")
    consul("kv", "put", "cli/b", "two")
    assert consul("kv", "get", "-recurse", "cli/") == "cli/a:one\ncli/b:two\n"
    assert consul("kv", "get", "-keys", "cli/") == "cli/a\ncli/b\n"
    assert "alive" in consul("members")
    assert "consul" in consul("catalog", "services").split()
    assert consul_server.node in consul("catalog", "nodes")
    assert "held" in consul("lock", "cli/lock", "echo held")
    assert json.loads(consul("kv", "export", "cli/"))[0]["key"] == "cli/a"
    consul("event", "-name=hello", "payload")
    consul("kv", "delete", "-recurse", "cli/")
    assert consul("kv", "get", "-recurse", "cli/") == ""


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("GET", "/v1/acl/tokens", None, 404, "a real Consul may"),
        ("GET", "/v1/kv/nothing-here", None, 404, ""),
        ("GET", "/v1/kv/k?index=x", None, 400, "Invalid index"),
        ("GET", "/v1/kv/k?index=1&wait=soon", None, 400, "Invalid wait"),
        ("GET", "/v1/health/state/fine", None, 400, "Invalid check state"),
        ("GET", "/v1/health/state/any?filter=Status+%3D%3D", None, 400, "expected a value"),
        ("PUT", "/v1/txn", b"{", 400, "decode"),
        ("PUT", "/v1/txn", b"[" + b",".join([b'{"KV":{"Verb":"get","Key":"k"}}'] * 65) + b"]", 413, "65 > 64"),
        ("PUT", "/v1/session/create", b'{"TTL": "soon"}', 400, "TTL"),
        ("PUT", "/v1/session/create", b'{"Behavior": "explode"}', 400, "Behavior"),
        ("PUT", "/v1/agent/service/register", b"[]", 400, "not an object"),
        ("PUT", "/v1/agent/service/register", b'{"Name": "x", "Check": {"TCP": "h:1"}}', 400, "only, not 'tcp'"),
        ("POST", "/v1/kv/k", b"", 405, ""),
    ],
)
def test_odd_requests_get_a_status_and_a_sentence(
    consul_server: Any, method: str, path: str, body: bytes | None, status: int, says: str
) -> None:
    request = urllib.request.Request(f"http://{consul_server.http}{path}", data=body, method=method)
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=5)
    with raised.value as answer:
        assert answer.code == status
        assert says in answer.read().decode()


def test_a_web_page_cannot_write(consul_server: Any) -> None:
    headers = {"Origin": "https://elsewhere.example"}
    request = urllib.request.Request(f"http://{consul_server.http}/v1/kv/k", data=b"", method="PUT", headers=headers)
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request, timeout=5)
    with raised.value as answer:
        assert answer.code == 403
