"""A machine that dies with everything on it: its replicas run elsewhere, the others do not notice."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from reconciler.children import alive, leftovers
from reconciler.planning.mass_failure import PACE
from tests.conftest import ConsulServer
from tests.e2e.system import NODES, Status, System, kill, system

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


def living(status: Status) -> dict[str, dict[str, Any]]:
    """Replica → row, of nodes that are alive."""
    up = {node["name"] for node in status["nodes"] if node["presence"] == "alive"}
    return {r["name"]: r for row in status["instances"] for r in row["replicas"] if r["node"] in up}


def machine_dies(made: System, node: str, pids: set[int]) -> None:
    """Its agent is dead; so is all that is left: its keeper, and its hosts, which are seen to be without one."""
    kill(made.process("agent.keeper", node))
    seen = leftovers(made.data)
    for pid in pids:
        assert not alive(pid) or any(line.startswith(f"pid {pid}:") for line in seen), "a host without keeper is seen"
        if alive(pid):
            kill(pid)


def test_replicas_of_a_dead_machine_run_elsewhere(consul_server: ConsulServer) -> None:
    with system(consul_server.http, failover={"lostAfter": "1s"}) as made:
        made.controller("c1", "--beat-ttl", "1", "--agent-ttl", "2")
        agents = {node: made.agent(node, "--beat-ttl", "2") for node in NODES}
        made.settled()
        before = living(made.status())
        victim = before["watch.0"]["node"]
        gone = {name for name, row in before.items() if row["node"] == victim}
        assert len(gone) >= 3, "each node has something of every instance"

        agents[victim].kill()
        agents[victim].wait(10)
        machine_dies(made, victim, {before[name]["pid"] for name in gone})

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


def test_many_machines_lost_at_once_move_only_when_a_person_says_so_and_one_at_a_time(
    consul_server: ConsulServer,
) -> None:
    """FAULTS 26: most likely the fault is ours."""
    policy = {"lostAfter": "1s", "massFailure": {"fraction": 0.3, "atLeast": 2}}
    with system(consul_server.http, failover=policy) as made:
        made.controller("c1", "--agent-ttl", "2")
        agents = {node: made.agent(node, "--beat-ttl", "2") for node in NODES}
        made.settled()
        before = living(made.see(lambda s: s["converged"], "all is as it should be"))
        stays, *victims = NODES
        for victim in victims:
            agents[victim].kill()
            agents[victim].wait(10)
        for victim in victims:
            machine_dies(made, victim, {row["pid"] for row in before.values() if row["node"] == victim})

        def held(status: Status) -> bool:
            lost = {node["name"] for node in status["nodes"] if node["presence"] == "lost"}
            return lost == set(victims) and "MASS_FAILURE_HOLD" in json.dumps(status["changes"])

        made.see(held, "both are lost, and nothing moves")
        shown = made.asked("plan").stdout
        assert "MASS_FAILURE_HOLD: 2 of 3 nodes lost together" in shown, shown
        assert "tdie apply --confirm-lost" in shown, shown
        assert made.asked("apply", "--yes").returncode == 0  # to say yes to the plan is not to say that they are gone
        of_two = {name for name, row in before.items() if row["node"] in victims and not name.startswith("each.")}
        assert of_two
        assert living(made.see(held, "nothing moves still")).keys().isdisjoint(of_two)

        confirmed = time.monotonic()
        done = made.asked("apply", "--yes", "--confirm-lost")
        assert done.returncode == 0, done.stderr
        first = made.see(lambda s: living(s).keys() & of_two, "what the first one ran is started")
        assert {before[name]["node"] for name in living(first).keys() & of_two} == {min(victims)}
        made.see(lambda s: of_two <= living(s).keys(), "what the other one ran follows")
        assert time.monotonic() - confirmed >= PACE
        after = living(made.see(lambda s: of_two <= living(s).keys(), "all of them are there"))
        assert {row["node"] for row in after.values()} == {stays}
        kept = [name for name, row in before.items() if row["node"] == stays]
        assert [after[name]["pid"] for name in kept] == [before[name]["pid"] for name in kept]
