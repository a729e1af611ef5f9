"""Hosts as real processes: started, watched, stopped, and found again."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from agent.errors import Invalid, Refused
from agent.keeper import linux
from agent.keeper.ensure import ensure_keeper

Rig = Any


async def test_both_runtimes_start_and_stop(rig: Rig) -> None:
    python = await rig.started(rig.order("a.0"))
    program = await rig.started(
        rig.program("b.0", "sh", "-c", "env > env.txt; echo ready; exec sleep 600", env={"X": "1"})
    )
    assert python.host_state == "Started"
    assert (python.restarts, program.restarts) == (0, 0)
    await rig.until(lambda: "ready" in (rig.folder / "b.0.log").read_text())
    env = dict(line.split("=", 1) for line in (rig.content / "env.txt").read_text().splitlines())
    assert env["X"] == "1"
    assert env["TDIE_REPLICA"] == "b.0"
    assert env["TDIE_SETTINGS"] == "{}"
    assert set(env) <= {"X", "PATH", "LANG", "LC_ALL", "HOME", "TZ", "TMPDIR", "PWD", "SHLVL", "_", "OLDPWD"} | {
        name for name in env if name.startswith(("TDIE_", "SSL_"))
    }
    for replica in ("a.0", "b.0", "a.0"):
        await rig.client.stop(replica)
        await rig.row(replica, lambda row: row.state == "Stopped" and row.pid is None)
    await rig.client.forget("a.0")
    assert [row.replica for row in await rig.client.rows()] == ["b.0"]


async def test_an_agent_that_comes_back_finds_the_same_processes(rig: Rig) -> None:
    before = [await rig.started(rig.order("a.0")), await rig.started(rig.program("b.0", "sleep", "600"))]
    await rig.deafen()
    rig.listen()
    for row in before:
        again = await rig.row(row.replica, lambda found: found.healthy)
        assert (again.pid, again.start_time, again.restarts) == (row.pid, row.start_time, 0)
    await rig.client.start(rig.order("a.0"))  # what it runs already
    assert (await rig.client.rows())[0].pid == before[0].pid


async def test_a_killed_host_is_back(rig: Rig, kill: Any) -> None:
    before = await rig.started(rig.order("a.0"))
    kill(before.pid)
    after = await rig.row("a.0", lambda row: row.healthy and row.pid != before.pid)
    assert after.restarts == 1


async def test_a_crash_loop_backs_off_and_gives_up(rig: Rig) -> None:
    await rig.client.start(rig.order("a.0", "Dies", restart_delay=0.2, restart_attempts=2))
    row = await rig.row("a.0", lambda row: row.state == "Failed")
    assert row.restarts == 2
    assert row.last_error == "exit status 3"
    states = [state for _, state, _ in rig.history]
    assert states.count("Backoff") == 1
    await rig.started(rig.order("a.0", spec_hash="spec-2"))  # a new spec starts with a clean slate


async def test_a_program_that_ends_by_itself_is_restarted(rig: Rig) -> None:
    await rig.client.start(rig.program("a.0", "sh", "-c", "echo the end; exit 0", restart_attempts=0))
    row = await rig.row("a.0", lambda row: row.state == "Failed")
    assert row.last_error == "exit status 0: the end"


async def test_a_member_that_breaks_makes_the_replica_fail_with_its_cause(rig: Rig) -> None:
    await rig.client.start(rig.order("a.0", "Breaks", restart_attempts=0))
    row = await rig.row("a.0", lambda row: row.state == "Failed")
    assert row.last_error == "ValueError: out of paper"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Nobody", ["CLASS_MISSING", "Nobody"]),
        ("Settings", ["NOT_A_COMPONENT"]),
        ("Component", ["MODULE", "abstract", "NOT_A", "ABSTRACT"]),
        ("Odd", ["PARAMETER_UNKNOWN", "'colour'"]),
        ("Fails", ["SETTING_MISSING", "'size'"]),
    ],
)
async def test_what_can_never_start_fails_at_once_and_says_why(rig: Rig, name: str, words: list[str]) -> None:
    await rig.client.start(rig.order("a.0", name))
    row = await rig.row("a.0", lambda row: row.state == "Failed")
    assert row.restarts == 0
    assert any(word in row.last_error for word in words), row.last_error
    assert "Traceback" not in row.last_error


async def test_a_program_that_cannot_run_fails_at_once(rig: Rig) -> None:
    await rig.client.start(rig.program("a.0", "./nothing"))
    row = await rig.row("a.0", lambda row: row.state == "Failed")
    assert row.last_error == "EXEC_FAILED ./nothing: No such file or directory"


async def test_who_ignores_the_end_is_killed_with_everything_it_started(rig: Rig, is_alive: Any) -> None:
    script = "trap '' TERM; setsid sh -c 'trap \"\" TERM; echo $$ > far; sleep 600 & wait' & (sleep 600 &) ; echo $$ > near; wait"
    await rig.started(rig.program("a.0", "sh", "-c", script, stop_grace=0.2))
    await rig.started(rig.order("b.0", "Deaf", stop_grace=0.2))
    await rig.until(lambda: (rig.content / "near").exists() and (rig.content / "far").exists())
    await rig.until(lambda: (rig.content / "far").read_text().strip())
    far = int((rig.content / "far").read_text())
    for replica in ("a.0", "b.0"):
        await rig.client.stop(replica)
        await rig.row(replica, lambda row: row.state == "Stopped")
    assert not is_alive(far)


async def test_what_a_crashed_host_left_behind_is_gone_before_it_is_back(rig: Rig, kill: Any, is_alive: Any) -> None:
    script = "setsid sh -c 'echo $$ > left; exec sleep 600' & wait"
    row = await rig.started(rig.program("a.0", "sh", "-c", script))
    await rig.until(lambda: (rig.content / "left").exists() and (rig.content / "left").read_text().strip())
    left = int((rig.content / "left").read_text())
    kill(row.pid)
    await rig.row("a.0", lambda found: found.healthy and found.pid != row.pid)
    assert not is_alive(left)


async def test_reconfigure_and_rename_keep_the_process(rig: Rig) -> None:
    row = await rig.started(rig.order("a.0"))
    new = rig.order("a.0", spec_hash="spec-2", component=rig.code("Idle", colour="blue"))
    await rig.client.reconfigure(new)
    after = await rig.row("a.0", lambda found: found.healthy and found.spec_hash == "spec-2")
    assert (after.pid, after.restarts) == (row.pid, 0)
    assert "blue" in (rig.folder / "a.0.log").read_text()
    await rig.client.rename("a.0", replace(new, replica="c.0", instance="c"))
    renamed = await rig.row("c.0", lambda found: found.healthy)
    assert (renamed.pid, [row.replica for row in await rig.client.rows()]) == (row.pid, ["c.0"])
    await rig.client.reconfigure(
        replace(new, replica="c.0", spec_hash="spec-3", component=rig.code("Fails"), restart_attempts=0)
    )
    failed = await rig.row("c.0", lambda found: found.state == "Failed")
    assert "'size'" in failed.last_error


async def test_a_port_that_is_taken_is_named_with_its_owner(rig: Rig) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        await rig.client.start(rig.order("a.0", port=port, restart_attempts=0))
        row = await rig.row("a.0", lambda row: row.state == "Failed")
        assert row.last_error == f"PORT_IN_USE {port} pid={os.getpid()}"


async def test_a_replaced_zygote_disturbs_no_host(rig: Rig, kill: Any) -> None:
    row = await rig.started(rig.order("a.0"))
    first = (await rig.client.about())["zygote"]["pid"]
    kill(first)
    await rig.started(rig.order("b.0"))
    about = await rig.client.about()
    assert about["zygote"]["pid"] != first
    assert about["zygote"]["replaced"] == 1
    assert rig.rows["a.0"].pid == row.pid


async def test_orders_that_make_no_sense_are_refused(rig: Rig) -> None:
    with pytest.raises(Invalid, match="command"):
        await rig.client.start(rig.program("a.0"))
    with pytest.raises(Invalid, match="replica"):
        await rig.client.start(rig.order("../a"))
    await rig.started(rig.order("a.0"))
    with pytest.raises(Refused, match="HOST_RUNNING"):
        await rig.client.forget("a.0")


FREEZER = Path("/sys/fs/cgroup/freezer")  # cgroup v1: what is frozen there does not even die


@pytest.mark.skipif(not os.access(FREEZER, os.W_OK), reason="no freezer of cgroup v1 here")
async def test_what_nothing_kills_is_said_and_not_replaced(rig: Rig, is_alive: Any) -> None:
    row = await rig.started(rig.program("a.0", "sleep", "600", stop_grace=0.1))
    cold = FREEZER / f"tdie-test-{os.getpid()}"
    cold.mkdir()
    try:
        (cold / "cgroup.procs").write_text(str(row.pid))
        (cold / "freezer.state").write_text("FROZEN")
        await rig.client.start(rig.program("a.0", "sleep", "601", spec_hash="spec-2"))  # what is to follow it
        stuck = await rig.row("a.0", lambda found: "STUCK" in found.last_error)
        assert (stuck.last_error, stuck.healthy, stuck.pid) == (f"STUCK_UNKILLABLE pid={row.pid}", False, row.pid)
        assert "STUCK_UNKILLABLE" in dict(await rig.client.problems())
        assert is_alive(row.pid)
    finally:
        (cold / "freezer.state").write_text("THAWED")
        await rig.until(lambda: not (cold / "cgroup.procs").read_text())
        cold.rmdir()
    after = await rig.row("a.0", lambda found: found.healthy and found.spec_hash == "spec-2")
    assert after.pid != row.pid
    assert "STUCK_UNKILLABLE" not in dict(await rig.client.problems())


async def test_memory_is_bounded(rig: Rig) -> None:
    script = "import sys; x = bytearray(200 << 20); print('got it')"
    order = rig.program("a.0", sys.executable, "-c", script, memory=100 << 20, restart_attempts=0)
    await rig.client.start(order)
    row = await rig.row("a.0", lambda row: row.state == "Failed")
    assert "MemoryError" in row.last_error


async def test_open_files_are_bounded(rig: Rig) -> None:
    script = "import os\nwhile True: os.open('/dev/null', os.O_RDONLY)"
    await rig.client.start(rig.program("a.0", sys.executable, "-c", script, restart_attempts=0))
    row = await rig.row("a.0", lambda row: row.state == "Failed")
    assert "Too many open files" in row.last_error


async def test_a_second_keeper_is_refused(rig: Rig) -> None:
    command = [sys.executable, "-I", "-m", "agent.keeper", "--socket", str(rig.socket), "--data", str(rig.data)]
    second = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=20)
    assert second.returncode == 75
    assert await rig.answers()


async def test_the_api_answers_and_a_stop_by_hand_is_told(rig: Rig, is_alive: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    row = await rig.started(rig.order("a.0", port=port))
    base = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=base, timeout=20) as client:
        assert (await client.get("/readyz")).status_code == 200
        told = (await client.get("/api/componentHost/configuration")).json()
        assert (told["pid"], told["replica"]) == (row.pid, "a.0")
        await client.put("/api/componentHost/services/stop")
        stopped = await rig.row("a.0", lambda found: found.state == "Stopped")
        assert stopped.pid == row.pid
        await client.put("/api/componentHost/services/start")
        await rig.row("a.0", lambda found: found.healthy)
        await client.put("/api/componentHost/services/stop")
        await rig.row("a.0", lambda found: found.state == "Stopped")
        await rig.client.start(rig.order("a.0", port=port))  # what a healing agent does
        again = await rig.row("a.0", lambda found: found.healthy and found.pid != row.pid)
        await client.post("/api/componentHost/shutdown")
    over = await rig.row("a.0", lambda found: found.state == "Stopped" and found.pid is None)
    assert over.restarts == again.restarts == 0


async def test_processes_carry_their_names(rig: Rig) -> None:
    row = await rig.started(rig.order("a.0"))
    env = linux.environ(row.pid)
    assert (env["TDIE_REPLICA"], env["TDIE_SPEC"], env["TDIE_NODE"]) == ("a.0", "spec-1", "n")
    comm = await asyncio.to_thread(Path(f"/proc/{row.pid}/comm").read_text)
    assert comm.strip() == "tdie:a.0"


async def test_agents_that_start_at_once_share_one_keeper(tmp_path: Path) -> None:
    clients = await asyncio.gather(*(ensure_keeper(tmp_path / "data") for _ in range(3)))
    try:
        pids = {(await client.about())["pid"] for client in clients}
        assert len(pids) == 1
        assert (tmp_path / "data" / "keeper.sock").stat().st_mode & 0o777 == 0o600
    finally:
        assert await clients[0].shutdown() == ()
        for client in clients:
            await client.aclose()


async def test_a_shutdown_leaves_nothing(rig: Rig, is_alive: Any) -> None:
    rows = [await rig.started(rig.order(f"a.{n}")) for n in range(3)] + [
        await rig.started(rig.program("b.0", "sleep", "600"))
    ]
    zygote = (await rig.client.about())["zygote"]["pid"]
    assert await rig.client.shutdown() == ()
    await rig.until(lambda: not any(is_alive(pid) for pid in [zygote, *(row.pid for row in rows)]))
    assert not rig.socket.exists()
    process = rig.process
    assert process is not None
    await rig.until(lambda: process.poll() is not None)


async def test_a_component_that_is_not_well_says_so_and_is_healthy_again(rig: Rig) -> None:
    order = rig.order("a.0", "Moody", check_interval=0.05, check_timeout=0.2)
    before = await rig.started(order)
    sad, hang = rig.content / "sad", rig.content / "hang"
    sad.touch()
    ill = await rig.row("a.0", lambda row: not row.healthy)
    assert (ill.state, ill.last_error) == ("Started", "health check: OSError: the database is away")
    assert ill.since > before.since
    sad.unlink()
    await rig.row("a.0", lambda row: row.healthy and not row.last_error)
    hang.touch()
    await rig.row("a.0", lambda row: row.last_error == "health check: no answer in 0.2 s")
    await rig.client.adjust(replace(order, check_interval=0.0, check_timeout=0.0))  # nobody asks any more
    after = await rig.row("a.0", lambda row: row.healthy)
    assert (after.pid, after.restarts) == (before.pid, 0)
    await rig.client.adjust(order)
    await rig.row("a.0", lambda row: not row.healthy)


async def test_a_component_without_a_check_cannot_be_asked(rig: Rig) -> None:
    await rig.client.start(rig.order("a.0", "Idle", check_interval=0.05, check_timeout=0.2))
    row = await rig.row("a.0", lambda row: "CHECK_MISSING" in row.last_error)
    assert (row.state, row.healthy) == ("Started", False)


async def test_what_the_same_process_cannot_run_is_replaced(rig: Rig) -> None:
    row = await rig.started(rig.order("a.0"))
    await rig.client.reconfigure(rig.order("a.0", spec_hash="spec-2", env={"X": "1"}))
    after = await rig.row("a.0", lambda found: found.healthy and found.spec_hash == "spec-2")
    assert after.pid != row.pid


async def test_stop_overtakes_start(rig: Rig) -> None:
    await asyncio.gather(*(rig.client.start(rig.order(f"a.{n}")) for n in range(5)))
    await asyncio.gather(*(rig.client.stop(f"a.{n}") for n in range(5)))
    for n in range(5):
        await rig.row(f"a.{n}", lambda found: found.state == "Stopped" and found.pid is None)
