"""A person empties a node, takes it back, and says "not now", with the commands an operator has."""

from __future__ import annotations

import pytest

from tests.conftest import ConsulServer
from tests.e2e.system import instance, replicas, system

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


def test_drain_uncordon_lock_unlock(consul_server: ConsulServer) -> None:
    with system(consul_server.http) as made:
        made.up()
        made.settled()
        before = replicas(made.status())
        done = made.asked("drain", "n3", "--reason", "new disk")
        assert (done.returncode, done.stdout) == (0, "n3 is empty\n"), done.stderr
        after = replicas(made.see(lambda s: s["converged"], "all is well without n3"))
        assert {row["node"] for row in after.values()} == {"n1", "n2"}
        assert after.keys() == before.keys() - {"each.n3.0"}
        for name, row in before.items():
            assert name == "each.n3.0" or (after[name]["pid"] == row["pid"]) == (row["node"] != "n3"), name
        shown = made.asked("status").stdout
        assert "alive, drained" in shown
        assert "new disk" in shown

        assert made.asked("uncordon", "n3").returncode == 0
        made.see(lambda s: s["converged"] and "each.n3.0" in replicas(s), "n3 has what belongs to every node")

        assert made.asked("lock", "node", "n1", "--reason", "backup runs").returncode == 0
        again = made.asked("lock", "node", "n1", "--reason", "mine")
        assert again.returncode == 1
        assert "NODE_LOCKED n1 is locked by" in again.stderr
        assert "backup runs" in again.stderr
        made.repo.push({"new.yaml": instance("new", package="sleeper@1.0.0", perNode=1)})
        made.see(lambda s: {"new.n2.0", "new.n3.0"} <= replicas(s).keys(), "the other nodes go on")
        waiting = made.asked("explain", "new").stdout
        assert "NODE_LOCKED n1 is locked" in waiting
        assert "new.n1.0" not in replicas(made.status())
        unlocked = made.asked("unlock", "node", "n1")
        assert "backup runs" in unlocked.stdout
        made.see(lambda s: s["converged"] and "new.n1.0" in replicas(s), "n1 is changed, too")
