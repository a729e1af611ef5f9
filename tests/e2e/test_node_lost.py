"""A machine that dies with everything on it: its replicas run elsewhere, the others do not notice."""

from __future__ import annotations

from typing import Any

import pytest

from reconciler.children import alive, leftovers
from tests.conftest import ConsulServer
from tests.e2e.system import NODES, Status, kill, system

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


def living(status: Status) -> dict[str, dict[str, Any]]:
    """Replica → row, of nodes that are alive."""
    up = {node["name"] for node in status["nodes"] if node["presence"] == "alive"}
    return {r["name"]: r for row in status["instances"] for r in row["replicas"] if r["node"] in up}


def test_replicas_of_a_dead_machine_run_elsewhere(consul_server: ConsulServer) -> None:
    with system(consul_server.http, failover={"lostAfter": "1s"}) as made:
        made.controller("c1", "--beat-ttl", "1", "--agent-ttl", "2")
        agents = {node: made.agent(node, "--beat-ttl", "2") for node in NODES}
        made.settled()
        before = living(made.status())
        victim = before["watch.0"]["node"]
        gone = {name for name, row in before.items() if row["node"] == victim}
        assert len(gone) >= 3, "each node has something of every instance"

        keeper = made.process("agent.keeper", victim)
        agents[victim].kill()
        agents[victim].wait(10)
        kill(keeper)
        seen = leftovers(made.data)
        for name in gone:
            pid = before[name]["pid"]
            assert not alive(pid) or any(line.startswith(f"pid {pid}:") for line in seen), (
                "a host without keeper is seen"
            )
        for name in gone:
            if alive(before[name]["pid"]):
                kill(before[name]["pid"])

        def moved(status: Status) -> bool:
            rows = {row["name"]: row for row in status["instances"]}
            return rows["sleep"]["healthy"] == 3 and rows["watch"]["healthy"] == 2 and victim not in here(status)

        def here(status: Status) -> set[str]:
            return {row["node"] for row in living(status).values()}

        status = made.see(moved, f"everything of {victim} runs elsewhere")
        after = living(status)
        assert next(n for n in status["nodes"] if n["name"] == victim)["presence"] == "lost"
        kept = before.keys() - gone
        assert {name: after[name]["pid"] for name in kept} == {name: before[name]["pid"] for name in kept}
        assert before.keys() - after.keys() == {f"each.{victim}.0"}, "what runs per node does not move"
        assert all(row["restarts"] == 0 for row in after.values())
        causes = made.asked("events").stdout
        assert victim in causes

        # The machine comes back: what is per node runs there again, and nothing runs twice.
        made.agent(victim, "--beat-ttl", "2")
        back = made.settled()
        assert back.keys() == before.keys()
        assert {name: back[name] for name in kept} == {name: before[name]["pid"] for name in kept}
        assert all(len(made.hosts(name)) == 1 for name in back)
