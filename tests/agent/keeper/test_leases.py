"""Leased hosts end in time when nobody extends their lease, whatever they made of themselves and whoever died."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.errors import Refused
from agent.keeper import linux
from agent.keeper.codec import Lines
from agent.keeper.fence import Due, Fence, due, next_look
from agent.keeper.hosted import Hosted
from agent.keeper.loop import Loop
from agent.keeper.protocol import Code, HostOrder, Lease
from tests.agent.keeper.releases import command, release

Rig = Any
LEASE = Lease(epoch=3, index=7, grace=0.4, slack=0.2)


@pytest.mark.parametrize(
    ("left", "what", "again_in"),
    [(10.0, Due.NOTHING, 9.4), (0.61, Due.NOTHING, 0.01), (0.6, Due.END, 0.4), (0.3, Due.END, 0.1), (0.2, Due.KILL, 0.02),
     (0.0, Due.KILL, 0.02), (-500.0, Due.KILL, 0.02)],
)  # fmt: skip
def test_what_is_due(left: float, what: Due, again_in: float) -> None:
    now = 1000.0
    assert due(now + left, LEASE, now) is what
    assert next_look(now + left, LEASE, now) == pytest.approx(now + again_in)


def hosted(replica: str, pid: int | None, lease: Lease | None) -> Hosted:
    component = Code("parts", "1.0.0", "0" * 64, "/parts", "parts:Idle")
    return Hosted(HostOrder(replica, "a", "n", "spec-1", "python", component, lease=lease), state="Started", pid=pid)


def test_a_fence_goes_on_with_the_deadlines_another_knew() -> None:
    now = linux.now()
    hosts = [hosted("a.0", 1, LEASE), hosted("b.0", 2, LEASE), hosted("c.0", None, LEASE), hosted("d.0", 4, None)]
    ended, killed = list[str](), list[str]()

    def fence() -> Fence:
        def end(host: Hosted, _code: str, _grace: float) -> None:
            ended.append(host.order.replica)

        return Fence(Loop(), lambda: hosts, end, lambda host: killed.append(host.order.replica))

    before, after = fence(), fence()
    assert before.first_kill() < 0  # nobody said until when
    before.extend(now + 30)
    before.agree("b.0", now + 90)
    assert (ended, killed) == ([], [])
    assert before.first_kill() == now + 30 - LEASE.slack
    after.resume(before.deadline, before.agreed)
    assert (ended, killed) == ([], [])
    assert after.first_kill() == now + 30 - LEASE.slack
    hosts[0].killed_at = now  # it is being ended already
    assert after.first_kill() == now + 90 - LEASE.slack
    hosts[0].killed_at = hosts[1].pid = None
    after.resume(now - 1, {})  # a deadline that passed meanwhile holds at once
    assert (ended, killed) == (["a.0"], ["a.0"])
    assert fence().first_kill() < 0
    hosts.clear()
    assert fence().first_kill() == math.inf


def test_who_slept_past_the_end_of_its_lease_is_ended_whatever_others_agree_to_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, ended = linux.now(), list[str]()
    host = hosted("a.0", 1, LEASE)

    def end(host: Hosted, code: str, _grace: float) -> None:
        host.fenced = code
        ended.append(host.order.replica)

    fence = Fence(Loop(), lambda: [host], end, lambda _host: None)
    fence.extend(now + 30)
    assert ended == []
    monkeypatch.setattr(linux, "now", lambda: now + 100)  # the whole machine did not run
    fence.agree("a.0", now + 130)
    assert ended == ["a.0"]


def test_half_a_line_is_gone_on_with() -> None:
    before = Lines()
    assert before.feed(b'{"a":1}\n{"b"') == [{"a": 1}]
    assert Lines(before.held).feed(b":2}\n") == [{"b": 2}]


def leased(order: HostOrder, lease: Lease = LEASE) -> HostOrder:
    return replace(order, lease=lease)


async def test_a_host_lives_while_its_lease_is_extended_and_not_a_moment_longer(rig: Rig, is_alive: Any) -> None:
    with pytest.raises(Refused) as refused:
        await rig.client.start(leased(rig.order("a.0")))
    assert refused.value.code == "LEASE_OVER"
    await rig.client.extend(linux.now() + 3.0)
    row = await rig.started(leased(rig.order("a.0")))
    free = await rig.started(rig.order("b.0"))
    for _ in range(4):
        deadline = linux.now() + 3.0
        await rig.client.extend(deadline)
        await rig.client.extend(deadline - 1.0)  # a late word changes nothing
        later = linux.now() + 0.4
        await rig.until(lambda later=later: linux.now() > later)
        assert is_alive(row.pid)
    ended = await rig.row("a.0", lambda found: found.state == "Stopped")
    assert linux.now() < deadline
    assert not is_alive(row.pid)
    assert (ended.fenced, ended.pid, ended.last_error) == ("LEASE_EXPIRED", None, "LEASE_EXPIRED")
    assert is_alive(free.pid)
    await rig.client.extend(linux.now() + 30)
    again = await rig.started(leased(rig.order("a.0")))  # somebody asked for it and the lease holds
    assert (again.fenced, again.restarts) == ("", 0)


async def test_one_host_lives_longer_because_others_agree_and_starts_nothing_by_that(rig: Rig, is_alive: Any) -> None:
    await rig.client.extend(linux.now() + 1.5)
    kept, other = await rig.started(leased(rig.order("a.0"))), await rig.started(leased(rig.order("b.0")))
    deadline = linux.now() + 3.0
    await rig.client.agree("a.0", deadline)
    await rig.row("b.0", lambda found: found.state == "Stopped")
    assert (is_alive(kept.pid), is_alive(other.pid)) == (True, False)
    with pytest.raises(Refused) as refused:
        await rig.client.start(leased(rig.order("c.0")))
    assert refused.value.code == "LEASE_OVER"
    await rig.row("a.0", lambda found: found.state == "Stopped")
    assert linux.now() < deadline
    assert not is_alive(kept.pid)


STUBBORN = """
trap '' TERM
setsid sh -c 'trap "" TERM; echo $$ > {0}/child; while :; do sleep 0.05; done' &
echo $$ > {0}/main; while :; do sleep 0.05; done
"""


def pid_in(file: Path) -> int:
    return int(file.read_text()) if file.exists() and file.read_text().strip() else 0


async def test_what_ignores_sigterm_and_left_its_session_is_dead_at_the_deadline(
    rig: Rig, is_alive: Any, tmp_path: Path
) -> None:
    await rig.client.extend(linux.now() + 30)
    script = STUBBORN.format(tmp_path)
    await rig.client.start(leased(rig.program("a.0", "sh", "-c", script, stop_grace=60.0)))
    await rig.until(lambda: pid_in(tmp_path / "child") and pid_in(tmp_path / "main"))
    pids = [pid_in(tmp_path / "child"), pid_in(tmp_path / "main")]
    asked = linux.now()
    await rig.client.stop("a.0")  # its own grace is long, the lease's is what counts
    await rig.client.fence("a.0", "LEASE_REVOKED")
    row = await rig.row("a.0", lambda found: found.state == "Stopped")
    assert row.fenced == "LEASE_REVOKED"
    assert not any(map(is_alive, pids))
    assert LEASE.grace <= linux.now() - asked < LEASE.grace + 1.0
    await rig.client.fence("b.0", "LEASE_REVOKED")  # of no host: nothing


async def test_a_crash_after_the_deadline_is_no_reason_to_start(rig: Rig, kill: Any) -> None:
    await rig.client.extend(linux.now() + 2.0)
    order = leased(rig.program("a.0", "sh", "-c", "sleep 600", restart_delay=3.0, restart_attempts=5))
    row = await rig.started(order)
    kill(row.pid)
    row = await rig.row("a.0", lambda found: found.state == "Started" and found.pid != row.pid)  # the lease held
    kill(row.pid)
    await rig.row("a.0", lambda found: found.state == "Backoff")
    row = await rig.row("a.0", lambda found: found.state == "Stopped")
    assert row.fenced == "LEASE_EXPIRED"
    assert row.pid is None


@pytest.mark.parametrize("upgraded", [False, True], ids=["", "while its zygote after an upgrade is on its way"])
async def test_leased_hosts_and_all_they_started_die_with_their_keeper(
    rig: Rig, is_alive: Any, upgraded: bool, tmp_path: Path
) -> None:
    await rig.client.extend(linux.now() + 60)
    python = await rig.started(leased(rig.order("a.0")))
    free = await rig.started(rig.program("b.0", "sleep", "600"))
    await rig.client.start(leased(rig.program("c.0", "sh", "-c", STUBBORN.format(tmp_path))))
    await rig.until(lambda: pid_in(tmp_path / "child") and pid_in(tmp_path / "main"))
    taken = await rig.started(rig.program("d.0", "sleep", "600"))  # not leased when it started
    await rig.client.adjust(leased(taken.order))
    pids = [python.pid, pid_in(tmp_path / "child"), pid_in(tmp_path / "main"), taken.pid]
    if upgraded:
        await rig.client.upgrade(command(release(tmp_path / "release")), "of a test")
        assert all(map(is_alive, pids))
    await rig.kill_keeper()
    await rig.until(lambda: not any(map(is_alive, pids)), within=5.0)
    assert is_alive(free.pid)
    await rig.up()
    for replica in ("a.0", "c.0", "d.0"):
        row = await rig.row(replica, lambda found: found.state == "Stopped")
        assert (row.fenced, row.pid) == ("LEASE_EXPIRED", None)
    row = await rig.row("b.0", lambda found: found.state == "Started")
    assert row.pid == free.pid


async def test_a_lease_comes_and_goes_while_the_process_stays(rig: Rig, is_alive: Any) -> None:
    row = await rig.started(rig.order("a.0"))
    with pytest.raises(Refused):
        await rig.client.adjust(leased(row.order))  # nobody said until when
    await rig.client.extend(linux.now() + 1.2)
    await rig.client.adjust(leased(row.order))
    await rig.row("a.0", lambda found: found.order.lease == LEASE)
    await rig.client.adjust(row.order)
    kept = await rig.row("a.0", lambda found: found.order.lease is None)
    over = linux.now() + 1.5
    await rig.until(lambda: linux.now() > over)
    assert kept.pid == row.pid
    assert is_alive(row.pid)
    await rig.client.extend(linux.now() + 1.2)
    await rig.client.adjust(leased(row.order))
    await rig.row("a.0", lambda found: found.state == "Stopped" and found.fenced == "LEASE_EXPIRED")


async def test_the_token_is_in_the_environment_of_a_program(rig: Rig, tmp_path: Path) -> None:
    await rig.client.extend(linux.now() + 60)
    await rig.started(leased(rig.program("a.0", "sh", "-c", f"echo $TDIE_LEASE > {tmp_path}/token; exec sleep 600")))
    await rig.until(lambda: (tmp_path / "token").exists() and (tmp_path / "token").read_text() == "3.7\n")
