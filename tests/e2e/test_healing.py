"""Whatever is killed comes back, and nothing else notices."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator

import pytest

from reconciler.children import alive
from tests.conftest import ConsulServer
from tests.e2e.system import System, instance, kill, replicas, system, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def shared(consul_server: ConsulServer) -> Iterator[System]:
    """A running system with two controllers; the leader's silence is noticed within two seconds."""
    with system(consul_server.http, environ={"TDIE_CONTROLLER_BEAT_TTL": "1"}) as made:
        made.up("--controllers", "2")
        yield made


@pytest.mark.parametrize("replica", ["watch.0", "sleep.0"])
def test_a_killed_host_is_replaced(shared: System, replica: str) -> None:
    before = shared.settled()
    count = replicas(shared.status())[replica]["restarts"]
    kill(before[replica])
    again = shared.another(replica, before[replica])
    status = shared.status()
    row = replicas(status)[replica]
    assert row["pid"] == again
    assert alive(again)
    assert row["healthy"]
    assert row["restarts"] == count + 1
    assert {n: r["pid"] for n, r in replicas(status).items() if n != replica} == {
        n: pid for n, pid in before.items() if n != replica
    }


def test_hosts_outlive_their_agent(shared: System) -> None:
    before = shared.settled()
    rows = replicas(shared.status())
    old, since = shared.process("agent", "n1"), time.monotonic()
    kill(old)
    shared.see(
        lambda s: any(
            n["name"] == "n1" and n["presence"] == "alive" and n["for"] < time.monotonic() - since for n in s["nodes"]
        ),
        "the controller follows the new agent",
    )
    assert shared.process("agent", "n1") != old
    assert shared.settled() == before
    after = replicas(shared.status())
    assert {n: r["restarts"] for n, r in after.items()} == {n: r["restarts"] for n, r in rows.items()}
    assert all(alive(pid) for pid in before.values())


def test_hosts_outlive_their_keeper(shared: System) -> None:
    before = shared.settled()
    rows = replicas(shared.status())
    mine = {name for name, row in rows.items() if row["node"] == "n2"}
    old = shared.process("agent.keeper", "n2")
    kill(old)
    until(lambda: set(shared.processes("agent.keeper", "n2")) - {old}, "a new keeper", seen=shared.logs)
    assert shared.settled() == before
    assert all(alive(pid) for pid in before.values())
    until(lambda: shared.said("n2", "a new keeper looks after them"), "it is said which were orphans", seen=shared.logs)
    # The new keeper watches what it did not start.
    for victim in sorted(mine):
        kill(before[victim])
        again = shared.another(victim, before[victim])
        assert shared.hosts(victim) == [again]


def test_another_controller_leads_on(shared: System) -> None:
    before = shared.settled()
    epoch = shared.status()["epoch"]
    name = json.loads(shared.key("leader"))["name"]
    up = json.loads((shared.data / "up.json").read_text())["pid"]
    os.kill(up, signal.SIGSTOP)  # it would start the killed one again, which might win
    try:
        kill(shared.process("reconciler", name))
        status = shared.see(lambda s: (s["epoch"] or 0) > epoch, "the other one leads")
        assert json.loads(shared.key("leader"))["name"] != name
        assert status["epoch"] == int(shared.key("epoch"))
        assert shared.settled() == before
        pushed = shared.repo.push({"late.yaml": instance("late", package="sleeper@1.0.0", replicas=1)})
        after = shared.settled(pushed)
        assert {n: pid for n, pid in after.items() if n in before} == before
        assert after.keys() - before.keys() == {"late.0"}
    finally:
        os.kill(up, signal.SIGCONT)
    until(lambda: shared.processes("reconciler", name), "the killed controller is started again")
