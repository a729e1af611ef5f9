"""A keeper that died is followed by one that finds every host again, and signals nobody else."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from agent.keeper import state
from agent.keeper.adoption import adopt
from agent.keeper.hosted import Hosted
from agent.keeper.linux import Process, Stat, stat
from agent.keeper.protocol import Code, HostOrder

Rig = Any


async def test_a_new_keeper_finds_the_same_processes(rig: Rig, kill: Any) -> None:
    before = [await rig.started(rig.order("a.0")), await rig.started(rig.program("b.0", "sleep", "600"))]
    await rig.kill_keeper()
    await rig.up()
    for row in before:
        again = await rig.row(row.replica, lambda found: found.healthy)
        assert (again.pid, again.restarts) == (row.pid, 0)
    kill(before[1].pid)  # not our child, and still watched
    await rig.row("b.0", lambda found: found.healthy and found.pid != before[1].pid and found.restarts == 1)
    await rig.client.stop("a.0")
    await rig.row("a.0", lambda found: found.state == "Stopped")


async def test_an_adopted_host_speaks_to_its_new_keeper(rig: Rig) -> None:
    row = await rig.started(rig.order("a.0"))
    await rig.kill_keeper()
    await rig.up()

    async def reconfigured_in_place() -> bool:
        await rig.client.reconfigure(rig.order("a.0", spec_hash="spec-2", component=rig.code("Idle", colour="red")))
        found = await rig.row("a.0", lambda found: found.healthy and found.spec_hash == "spec-2")
        return bool(found.pid == row.pid)

    await rig.until(lambda: _speaks(rig))
    assert await reconfigured_in_place()


async def _speaks(rig: Rig) -> bool:
    """Whether the keeper has heard of the host."""
    about = await rig.client.about()
    return bool(about["speaking"] == 1)


async def test_what_ended_meanwhile_is_restarted(rig: Rig, kill: Any) -> None:
    row = await rig.started(rig.order("a.0"))
    await rig.kill_keeper()
    kill(row.pid)
    await rig.up()
    after = await rig.row("a.0", lambda found: found.healthy)
    assert after.pid != row.pid
    assert after.restarts == 1


@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
async def test_without_its_state_file_a_keeper_rebuilds_and_kills_nothing(rig: Rig, damage: str) -> None:
    python = await rig.started(rig.order("a.0"))
    program = await rig.started(rig.program("b.0", "sleep", "600"))
    await rig.kill_keeper()
    file = rig.data / "keeper.state"
    data = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[len(data) // 3] ^= 1
        file.write_bytes(data)
    else:
        file.unlink()
    await rig.up()
    first = await rig.row("a.0", lambda found: found.pid == python.pid and found.healthy)
    second = await rig.row("b.0", lambda found: found.pid == program.pid and found.healthy)
    assert (first.spec_hash, second.spec_hash) == ("spec-1", "spec-1")
    problems = [problem["code"] for problem in (await rig.client.about())["problems"]]
    assert problems == ([] if damage == "gone" else ["STATE_REBUILT"])
    assert bool(list(rig.data.glob("keeper.bad*"))) == (damage != "gone")
    await rig.client.adjust(rig.program("b.0", "sleep", "600"))  # its agent knows the whole order
    assert {row.order.command for row in await rig.client.rows() if row.replica == "b.0"} == {("sleep", "600")}


async def test_a_reused_pid_is_never_signalled(rig: Rig) -> None:
    await rig.started(rig.program("a.0", "sleep", "600", stop_grace=0.1))
    await rig.kill_keeper()
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as stranger:  # noqa: ASYNC220
        _rewrite(rig.data / "keeper.state", pid=stranger.pid, start_time=1, launch="another")
        await rig.up()
        await rig.row("a.0", lambda found: found.healthy and found.pid != stranger.pid)
        await rig.client.stop("a.0")
        await rig.row("a.0", lambda found: found.state == "Stopped")
        assert stranger.poll() is None
        stranger.kill()


def _rewrite(file: Path, **changed: Any) -> None:
    import hashlib

    lines = file.read_text().splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), **changed})
    body = "".join(f"{line}\n" for line in lines[:-1])
    digest = hashlib.sha256(body.encode()).hexdigest()
    file.write_text(body + json.dumps({"sha256": digest}) + "\n")


def _host(launch: str, pid: int | None = 10, start: int | None = 5) -> Hosted:
    host = Hosted(HostOrder("a.0", "a", "n", "s", "python", Code("p", "1.0.0", "d", "/")), launch=launch, pid=pid)
    host.take(host.order)
    host.start_time = start
    return host


def _stat(pid: int, start: int) -> Stat:
    return Stat(pid, "S", 1, pid, pid, start)


@pytest.mark.parametrize(
    ("recorded", "living", "expected"),
    [
        ({10: _stat(10, 5)}, [], "alive"),  # pid and start time fit
        ({10: _stat(10, 6)}, [], "dead"),  # the pid is another's
        ({}, [], "dead"),
        ({}, [Process(_stat(11, 9), {"TDIE_HOST": "L", "TDIE_REPLICA": "a.0"})], "alive"),  # found by its marker
        (
            {},
            [Process(Stat(12, "S", 11, 11, 11, 9), {"TDIE_HOST": "L", "TDIE_REPLICA": "a.0"})],
            "dead",
        ),  # only its child
        ({}, [Process(_stat(11, 9), {"TDIE_HOST": "M", "TDIE_REPLICA": "a.0"})], "rebuilt"),
        ({}, [Process(_stat(11, 9), {"TDIE_HOST": "M", "TDIE_REPLICA": "b.0"})], "rebuilt dead"),
    ],
)
def test_who_is_who(recorded: dict[int, Stat], living: list[Process], expected: str) -> None:
    found = adopt([_host("L")], recorded, living)
    said = [name for name, part in (("alive", found.alive), ("rebuilt", found.rebuilt), ("dead", found.dead)) if part]
    assert " ".join(said) == expected


def test_the_state_file_is_whole_or_aside(tmp_path: Path) -> None:
    file, aside = tmp_path / "keeper.state", tmp_path / "aside"
    host = _host("L")
    state.save(file, "boot", [host])
    whole = file.read_bytes()
    read = state.load(file, aside)
    assert read.boot_id == "boot"
    assert read.hosts[0].row() == host.row()
    for cut in range(0, len(whole), 7):
        file.write_bytes(whole[:cut])
        assert state.load(file, aside).problem
        assert not file.exists()
    for at in range(0, len(whole), 5):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        assert state.load(file, aside).problem


def test_this_process_is_itself() -> None:
    import os

    seen = stat(os.getpid())
    assert seen is not None
    assert seen.parent == os.getppid()
