"""Which Consul is used, what is said about it, and that what we start is gone afterwards."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.consul.client import ConsulClient
from agent.consul.process import free_port, running
from agent.consul.which import existing, running_consul
from agent.errors import Waiting

NOWHERE = {"PATH": "/nonexistent"}


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_the_configured_one_is_taken_even_when_it_is_away(tmp_path: Path) -> None:
    async with running_consul(tmp_path, {"CONSUL_HTTP_ADDR": "https://consul.lan:8501"}) as choice:
        assert choice.kind == "configured"
        assert str(choice.address) == "https://consul.lan:8501"
        assert choice.pid is None


async def test_one_that_answers_here_is_taken_and_left_running(consul_server: Any, tmp_path: Path) -> None:
    async with running_consul(tmp_path, NOWHERE, local_port=consul_server.port) as choice:
        assert (choice.kind, choice.pid, choice.ui) == ("local", None, None)
        assert "has no Consul UI" in choice.sentence
    assert consul_server.process.poll() is None


async def test_without_a_program_the_embedded_one_is_started_keeps_its_data_and_stops(
    free_port: Callable[[], int], tmp_path: Path
) -> None:
    port = free_port()
    for value in (None, b"kept"):
        async with running_consul(tmp_path, NOWHERE, local_port=port) as choice:
            assert choice.kind == "embedded"
            assert choice.pid
            assert alive(choice.pid)
            assert "no Consul UI" in choice.sentence
            client = ConsulClient.from_environ(choice.environ(NOWHERE))
            found = await client.get("k")
            assert (found.value if found else None) == value
            await client.put("k", b"kept")
            await client.close()
        assert not alive(choice.pid)
    assert await existing(NOWHERE, local_port=port) is None


@pytest.mark.consul
async def test_the_program_on_the_path_is_started_and_stopped(
    make_consul: Any, free_port: Callable[[], int], tmp_path: Path
) -> None:
    binary = make_consul("real", tmp_path).binary
    async with running_consul(tmp_path, {"PATH": str(binary.parent)}, local_port=free_port()) as choice:
        assert choice.kind == "dev"
        assert choice.pid
        assert choice.ui
        assert str(choice.address) in choice.sentence
    assert not alive(choice.pid)


async def test_a_server_that_does_not_come_up_is_told_with_its_last_words(tmp_path: Path) -> None:
    command = ["/bin/sh", "-c", "echo out of luck >&2; exit 3"]
    with pytest.raises(Waiting, match="status 3; its last words: out of luck"):
        async with running(command, free_port(), "node", tmp_path / "log"):
            pass


async def test_a_server_that_says_nothing_is_given_up_and_stopped(tmp_path: Path) -> None:
    seen = tmp_path / "pid"
    command = ["/bin/sh", "-c", f"echo $$ > {seen}; exec sleep 60"]
    with pytest.raises(Waiting, match="CONSUL_NOT_STARTED"):
        async with running(command, free_port(), "node", tmp_path / "log", within=0.5):
            pass
    assert not alive(int(seen.read_text()))


async def test_a_stranger_on_the_port_is_not_mistaken_for_ours(consul_server: Any, tmp_path: Path) -> None:
    with pytest.raises(Waiting, match="another Consul answers there"):
        async with running(["/bin/sleep", "60"], consul_server.port, "ours", tmp_path / "log", within=0.5):
            pass


async def test_it_stops_when_the_block_fails_or_is_cancelled(free_port: Callable[[], int], tmp_path: Path) -> None:
    pids: asyncio.Queue[int] = asyncio.Queue()

    async def use() -> None:
        async with running_consul(tmp_path, NOWHERE, local_port=free_port()) as choice:
            pids.put_nowait(choice.pid or 0)
            await asyncio.sleep(60)

    task = asyncio.create_task(use())
    pid = await pids.get()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive(pid)
