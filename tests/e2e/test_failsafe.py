"""`lease: failsafe` with real processes: Consul is gone, and the nodes agree over their own API who may run on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import make_embedded
from tests.e2e.system import NODES, System, instance, replicas, system, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

FIGURES = {
    "ttl": "5s", "renewEvery": "500ms", "httpTimeout": "1s", "fenceGrace": "500ms", "killSlack": "500ms",
    "lockDelay": "6s",
}  # fmt: skip
KINDS = ("none", "strict", "failsafe")
LEASED = {f"{kind}.yaml": instance(kind, package="sleeper@1.0.0", replicas=1, lease=kind) for kind in KINDS}


def eligible(made: System) -> set[str]:
    """The nodes that the holder has written down."""
    return set(json.loads(made.key("leases/failsafe.0") or "{}").get("eligible", {}))


def test_it_outlives_consul_for_as_long_as_every_node_agrees(tmp_path: Path) -> None:
    server = make_embedded(tmp_path)
    server.start()
    try:
        with system(server.http, leases=FIGURES) as made:
            made.controller("c1", "--beat-ttl", "1", "--agent-ttl", "2")
            agents = {node: made.agent(node, "--beat-ttl", "2") for node in NODES}
            before = made.settled(made.repo.push(LEASED, "leased"))
            holder = replicas(made.status())["failsafe.0"]["node"]
            until(lambda: eligible(made) == set(NODES), "the holder has written all nodes down")

            server.stop(kill=True)
            until(lambda: not made.hosts("strict.0"), "a strict lease ends with what is known of it", within=15)
            until(lambda: made.said(holder, "Consul is away: who agrees that it runs on"), "the others were asked")
            assert made.hosts("failsafe.0") == [before["failsafe.0"]], "its time would be over too"

            peer = next(node for node in NODES if node != holder)
            agents[peer].kill()
            agents[peer].wait(10)
            until(lambda: not made.hosts("failsafe.0"), "one that does not agree is enough", within=15)

            server.start()
            made.agent(peer, "--beat-ttl", "2")
            until(lambda: made.hosts("strict.0") and made.hosts("failsafe.0"), "both run again", within=60)
            after = made.settled()
            changed = {"strict.0", "failsafe.0"}
            assert after.keys() == before.keys()
            assert {name for name in before if after[name] != before[name]} == changed
            assert all(len(made.hosts(name)) == 1 for name in after)
    finally:
        server.stop()
