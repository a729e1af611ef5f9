"""A keeper becomes another release of itself: one process, the same hosts, the same deadlines. Real processes. FAULTS row 46."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.errors import Invalid, Refused, Waiting
from agent.keeper import linux
from agent.keeper.ensure import upgrade_keeper
from agent.keeper.identity import code_identity
from agent.keeper.protocol import HostOrder, Lease
from tests.agent.keeper.releases import command, release

Rig = Any
LEASE = Lease(epoch=3, index=7, grace=0.4, slack=0.2)
LONG = 86400.0


def leased(order: HostOrder) -> HostOrder:
    return replace(order, lease=LEASE)


async def upgraded(rig: Rig, python: str) -> dict[str, Any]:
    """What the keeper said of it; the process is the same, its code is another."""
    before = await rig.client.about()
    done: dict[str, Any] = await rig.client.upgrade(command(python), "of a test")
    after = await rig.client.about()
    assert (done["before"], done["after"]) == (before["code"], after["code"])
    assert before["code"] == code_identity() != after["code"]
    assert before["pid"] == after["pid"] == rig.process.pid
    return done


def open_files(pid: int | None) -> list[str]:
    return [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]


def inherited(pid: int | None) -> list[str]:
    """What is the keeper's own and nobody else's."""
    return [name for name in open_files(pid) if any(word in name for word in ("keeper.lock", "memfd", "pidfd"))]


async def zygote(rig: Rig) -> dict[str, Any]:
    found: dict[str, Any] = (await rig.client.about())["zygote"]
    return found


async def pids(rig: Rig) -> dict[str, tuple[str, int | None, int]]:
    return {row.replica: (row.state, row.pid, row.restarts) for row in await rig.client.rows()}


async def test_all_hosts_stay_and_all_goes_on(rig: Rig, kill: Any, is_alive: Any, tmp_path: Path) -> None:
    await rig.client.extend(linux.now() + LONG)
    python, program = await rig.started(rig.order("a.0")), await rig.started(rig.program("b.0", "sleep", "600"))
    strict = await rig.started(leased(rig.order("c.0")))
    image = (await zygote(rig))["pid"]
    before, told = await pids(rig), len(rig.history)
    done = await upgraded(rig, release(tmp_path / "next"))
    assert done["hosts"] == 3
    assert done["took"] < 1.0
    assert await pids(rig) == before
    parents = {seen.parent for pid in (python.pid, program.pid, strict.pid) if (seen := linux.stat(pid))}
    assert parents == {rig.process.pid}
    assert f"KEEPER_UPGRADED before={done['before']}" in (rig.data / "keeper.log").read_text()
    # who listened listens still, to what changed and nothing else
    assert (len(rig.history), rig._following.done()) == (told, False)
    another = await rig.started(rig.order("d.0"))
    await rig.until(lambda: not is_alive(image))
    assert (await zygote(rig))["replaced"] == 1
    assert inherited((await zygote(rig))["pid"]) == []
    # its children are its children: how they end is seen
    for row in (python, program, another):
        kill(row.pid)
        back = await rig.row(row.replica, lambda found, pid=row.pid: found.state == "Started" and found.pid != pid)
        assert back.restarts == 1
        assert linux.stat(row.pid) is None  # reaped
    kill(back.pid)
    assert (await rig.row(back.replica, lambda found: found.state == "Backoff")).last_error == "killed by SIGKILL"
    await rig.client.stop("a.0")
    assert (await rig.row("a.0", lambda found: found.state == "Stopped")).pid is None
    second = subprocess.run(  # noqa: ASYNC221
        [*command(sys.executable), "--socket", str(rig.socket), "--data", str(rig.data)], capture_output=True
    )
    assert second.returncode == 75
    assert b"KEEPER_RUNNING" in second.stderr
    again = await rig.client.upgrade(command(sys.executable), "back")  # and back to the release before
    assert again["after"] == done["before"]
    assert is_alive(strict.pid)


async def test_leases_end_when_they_would_have(rig: Rig, is_alive: Any, tmp_path: Path) -> None:
    python = release(tmp_path / "next")
    deadline = linux.now() + 6.0
    await rig.client.extend(deadline)
    await rig.client.agree("b.0", deadline + 2.0)
    first, kept = await rig.started(leased(rig.order("a.0"))), await rig.started(leased(rig.order("b.0")))
    await upgraded(rig, python)
    third = await rig.started(leased(rig.order("c.0")))  # nobody said the deadline again
    await rig.row("a.0", lambda found: found.state == "Stopped")
    assert linux.now() < deadline
    await rig.row("c.0", lambda found: found.state == "Stopped")
    assert linux.now() < deadline
    assert [is_alive(row.pid) for row in (first, kept, third)] == [False, True, False]
    ended = await rig.row("b.0", lambda found: found.state == "Stopped")
    assert deadline < linux.now() < deadline + 2.0
    assert (ended.fenced, is_alive(kept.pid)) == ("LEASE_EXPIRED", False)


async def test_what_was_under_way_comes_to_its_end(rig: Rig, kill: Any, is_alive: Any, tmp_path: Path) -> None:
    python = release(tmp_path / "next")
    deaf = await rig.started(rig.order("a.0", "Deaf", stop_grace=4.0))
    replaced = await rig.started(rig.order("b.0", "Deaf", stop_grace=4.0))
    crashed = await rig.started(rig.program("c.0", "sleep", "600", restart_delay=4.0))
    kill(crashed.pid)
    crashed = await rig.row("c.0", lambda found: found.state == "Started" and found.restarts == 1)
    kill(crashed.pid)
    waits = await rig.row("c.0", lambda found: found.state == "Backoff")
    stopped = linux.now()
    await rig.client.stop("a.0")
    await rig.client.start(rig.order("b.0", spec_hash="spec-2"))
    await upgraded(rig, python)
    assert linux.now() < stopped + 4.0, "the machine is too slow for this test"
    assert {name: found[0] for name, found in (await pids(rig)).items()} == {
        "a.0": "Stopping", "b.0": "Stopping", "c.0": "Backoff",
    }  # fmt: skip
    await rig.row("a.0", lambda found: found.state == "Stopped")
    assert 4.0 <= linux.now() - stopped < 6.0
    other = await rig.row("b.0", lambda found: found.healthy and found.spec_hash == "spec-2")
    again = await rig.row("c.0", lambda found: found.state == "Started" and found.pid is not None)
    assert again.restarts == 2
    assert waits.retry_at is not None
    assert linux.now() >= waits.retry_at
    assert not is_alive(deaf.pid)
    assert is_alive(other.pid)
    assert other.pid != replaced.pid


async def test_a_host_of_an_earlier_keeper_is_watched_on(rig: Rig, kill: Any, tmp_path: Path) -> None:
    python, program = await rig.started(rig.order("a.0")), await rig.started(rig.program("b.0", "sleep", "600"))
    await rig.kill_keeper()
    await rig.up()
    for row in (python, program):
        assert (await rig.row(row.replica, lambda found: found.healthy)).pid == row.pid
    await upgraded(rig, release(tmp_path / "next"))
    assert {pid for _, pid, _ in (await pids(rig)).values()} == {python.pid, program.pid}
    await rig.client.reconfigure(replace(python.order, component=rig.code(colour="red"), spec_hash="spec-2"))
    told = await rig.row("a.0", lambda found: found.healthy and found.spec_hash == "spec-2")
    assert told.pid == python.pid  # it still hears of its keeper, and is heard
    for row in (python, program):
        kill(row.pid)
        await rig.row(row.replica, lambda found, pid=row.pid: found.state == "Started" and found.pid != pid)


async def test_starts_on_their_way_are_neither_lost_nor_counted_as_crashes(rig: Rig, tmp_path: Path) -> None:
    python = release(tmp_path / "next")
    upgrading = asyncio.create_task(upgraded(rig, python))

    async def keep_starting(word: str) -> int:
        number = 0
        while number == 0 or not upgrading.done():
            row = await rig.started(rig.program(f"{word}.{number}", "sleep", "600"))
            assert row.restarts == 0
            number += 1
        return number

    started = await asyncio.gather(*map(keep_starting, "abcd"))
    await upgrading
    rows = await rig.client.rows()
    assert len({row.pid for row in rows}) == len(rows) == sum(started)
    assert {(row.state, row.restarts) for row in rows} == {("Started", 0)}


BROKEN = {
    "a keeper that does not parse": {"keeper__supervisor": ("class Supervisor(Lifecycle):", "class Supervisor(")},
    "a keeper that cannot read this": {"keeper__handover": ("VERSION = 1", "VERSION = 2")},
    "a host runtime that does not load": {"host__runtime": ("import asyncio", "import no_such_module")},
}


@pytest.mark.parametrize("broken", [*BROKEN, "no interpreter", "no keeper"])
async def test_broken_code_takes_nothing_over(rig: Rig, broken: str, is_alive: Any, tmp_path: Path) -> None:
    words = command(release(tmp_path / "next", **BROKEN.get(broken, {})))
    words[0] = "/nowhere/python" if broken == "no interpreter" else words[0]
    words[-1] = "no_such_module" if broken == "no keeper" else words[-1]
    row = await rig.started(rig.order("a.0"))
    with pytest.raises(Refused) as refused:
        await rig.client.upgrade(words, "of a test")
    assert refused.value.code == "UPGRADE_FAILED"
    assert (await rig.client.about())["code"] == code_identity()
    assert is_alive(row.pid)
    await rig.started(rig.order("b.0"))
    await upgraded(rig, release(tmp_path / "whole"))


async def test_an_interpreter_that_is_gone_at_the_last_moment(rig: Rig, kill: Any, tmp_path: Path) -> None:
    once = tmp_path / "python"
    once.write_text(f'#!/bin/sh\nrm "$0"\nexec {sys.executable} "$@"\n')
    once.chmod(0o700)
    await rig.client.extend(linux.now() + 60)
    row, strict = await rig.started(rig.order("a.0")), await rig.started(leased(rig.order("b.0")))
    with pytest.raises(Refused) as refused:
        await rig.client.upgrade(command(str(once)), "of a test")
    assert (refused.value.code, "No such file" in refused.value.detail) == ("UPGRADE_FAILED", True)
    kill((await zygote(rig))["pid"])  # it hears of its children, and starts others that inherit nothing
    kill(row.pid)
    await rig.row("a.0", lambda found: found.healthy and found.restarts == 1)
    assert (await zygote(rig))["replaced"] == 1
    assert inherited((await zygote(rig))["pid"]) == []
    assert (await pids(rig))["b.0"][1] == strict.pid
    rig.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(rig.process.wait, 10) == 0


def standing(gate: Path) -> tuple[str, str]:
    """The edit of a release that does nothing when it takes over, until somebody writes to the gate."""
    os.mkfifo(gate)
    waiting = f"import argparse, sys\nif '--resume' in sys.argv:\n    open({str(gate)!r}).readline()\n"
    return "import argparse\n", waiting


async def taken_over(rig: Rig) -> None:
    """The process runs the next image."""
    await rig.until(lambda: b"--resume" in Path(f"/proc/{rig.process.pid}/cmdline").read_bytes())


async def test_sigterm_in_between_is_heard(rig: Rig, is_alive: Any, tmp_path: Path) -> None:
    row = await rig.started(rig.order("a.0"))
    python = release(tmp_path / "next", keeper____main__=standing(tmp_path / "gate"))
    upgrading = asyncio.create_task(rig.client.upgrade(command(python), "of a test"))
    await taken_over(rig)
    rig.process.send_signal(signal.SIGTERM)
    gate = os.open(tmp_path / "gate", os.O_RDWR)
    os.write(gate, b"go on\n")
    assert await asyncio.to_thread(rig.process.wait, 10) == 0
    os.close(gate)
    assert (await upgrading)["hosts"] == 1
    assert is_alive(row.pid)


async def test_a_new_keeper_that_hangs_holds_no_deadline_up(rig: Rig, is_alive: Any, tmp_path: Path) -> None:
    deadline = linux.now() + 8.0
    await rig.client.extend(deadline)
    free, strict = await rig.started(rig.order("a.0")), await rig.started(leased(rig.order("b.0")))
    python = release(tmp_path / "next", keeper____main__=standing(tmp_path / "gate"))
    upgrading = asyncio.create_task(rig.client.upgrade(command(python), "of a test"))
    await taken_over(rig)
    assert await asyncio.to_thread(rig.process.wait, 20) == -signal.SIGALRM
    await rig.until(lambda: not is_alive(strict.pid), within=1.0)
    assert linux.now() < deadline
    with pytest.raises(Waiting):
        await upgrading
    assert is_alive(free.pid)
    await rig.deafen()
    await rig.up()
    assert (await rig.row("a.0", lambda found: found.healthy)).pid == free.pid


async def test_what_cannot_be_read_after_all_is_found_anew(rig: Rig, is_alive: Any, tmp_path: Path) -> None:
    python = release(
        tmp_path / "next",
        keeper__handover=("VERSION = 1", "VERSION = 2"),
        keeper____main__=("    read(os.dup(0))\n", "    return 0\n"),  # nobody notices before
    )
    await rig.client.extend(linux.now() + 60)
    free, strict = await rig.started(rig.order("a.0")), await rig.started(leased(rig.order("b.0")))
    with pytest.raises(Waiting):
        await rig.client.upgrade(command(python), "of a test")
    await rig.until(rig.answers)
    assert "version 1, this keeper reads 2" in (await rig.client.problems())["STATE_REBUILT"]
    assert (await rig.client.about())["pid"] == rig.process.pid
    await rig.deafen()
    rig.listen()
    assert (await rig.row("a.0", lambda found: found.healthy)).pid == free.pid
    ended = await rig.row("b.0", lambda found: found.state == "Stopped")
    assert (ended.fenced, is_alive(strict.pid)) == ("LEASE_EXPIRED", False)
    assert len([name for name in open_files(rig.process.pid) if name.endswith("keeper.lock")]) == 1
    await rig.started(rig.order("c.0"))


async def test_a_keeper_from_before_goes_on_as_it_is(rig: Rig, tmp_path: Path) -> None:
    await rig.down()
    await rig.up(release(tmp_path / "before", keeper__server=('case "upgrade":', 'case "no such thing":')))
    row = await rig.started(rig.order("a.0"))
    with pytest.raises(Invalid) as refused:
        await upgrade_keeper(rig.client)
    assert refused.value.code == "VERSION_SKEW"
    assert (await pids(rig))["a.0"] == ("Started", row.pid, 0)


async def test_an_agent_asks_once_and_only_a_keeper_of_other_code(rig: Rig, tmp_path: Path) -> None:
    assert await upgrade_keeper(rig.client) == {}
    await upgraded(rig, release(tmp_path / "next"))
    done = await upgrade_keeper(rig.client)
    assert done["after"] == code_identity()
    assert await upgrade_keeper(rig.client) == {}
    for request in ([], ["python"], ["/bin/true", ""]):
        with pytest.raises(Invalid):
            await rig.client.upgrade(request, "of a test")
