"""How long planning takes at 10,000 replicas (1,000 instances × 10) on 500 nodes: `python -m tests.bench planning`."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import replace

from agent.clock import Monotonic
from agent.wire import PackageRef, ReplicaSpec, digest_of
from reconciler.model.desired import ClusterSpec, DesiredState, InstanceSpec, NodeSpec
from reconciler.model.observed import ObservedState, Record
from reconciler.planning import Memo, plan
from reconciler.simulation.executed import empty_fleet, executed
from tests.bench import figures

NODES, INSTANCES, REPLICAS = 500, 1000, 10
NOW = Monotonic(1_000_000.0)


def instance(name: str, version: str) -> InstanceSpec:
    package = PackageRef(name=f"package-{int(name[-4:]) % 40}", version=version, digest=digest_of([name, version]))
    spec = ReplicaSpec(package=package, settings={"path": f"/srv/{name}", "filter": "*.xml"})
    return InstanceSpec(name, spec, spec.hash(), replicas=REPLICAS)


def desired() -> DesiredState:
    nodes = {f"node-{n:03}": NodeSpec(f"node-{n:03}", labels={"zone": "abc"[n % 3]}) for n in range(NODES)}
    instances = {name: instance(name, "1.0.0") for name in (f"instance-{n:04}" for n in range(INSTANCES))}
    return DesiredState("first", ClusterSpec("bench", nodes), instances)


def timed(work: Callable[[], object], rounds: int, before: Callable[[], object] = lambda: None) -> list[float]:
    """Milliseconds of each round; what `before` does is not counted."""
    times = []
    for _ in range(rounds):
        before()
        started = time.perf_counter()
        work()
        times.append((time.perf_counter() - started) * 1000)
    return times


def main() -> None:
    """Print p50 and p99 beside the targets."""
    wanted = desired()
    empty = empty_fleet(wanted)
    figures.line("first deployment, nothing known", timed(lambda: plan(wanted, empty, Record(), NOW), 3), "ms", 1500)
    running = executed(plan(wanted, empty, Record(), NOW), empty, NOW)
    gc.collect()
    gc.freeze()
    figures.line("cold plan, everything runs", timed(lambda: plan(wanted, running, Record(), NOW), 5), "ms", 1500)

    memo = Memo()
    plan(wanted, running, Record(), NOW, memo)
    assert not plan(wanted, running, Record(), NOW, memo).changes
    view = replace(running, nodes=dict(running.nodes))
    figures.line("no-op plan", timed(lambda: plan(wanted, view, Record(), NOW, memo), 200), "ms", 1)

    commits = 0
    state = wanted
    fleet: ObservedState = running

    def commit() -> None:
        nonlocal commits, state
        commits += 1
        name = f"instance-{commits:04}"
        state = replace(
            state, commit=f"c{commits}", instances={**state.instances, name: instance(name, f"1.{commits}.0")}
        )

    def planned() -> None:
        made = plan(state, fleet, Record(), NOW, memo)
        assert len(made.changes) >= REPLICAS

    def settle() -> None:
        nonlocal fleet
        while (made := plan(state, fleet, Record(), NOW, memo)).targets:
            fleet = executed(made, fleet, NOW)
        commit()

    figures.line("plan after one instance changed", timed(planned, 30, before=settle), "ms", 10)

    def report() -> None:
        nonlocal fleet
        settle()
        plan(state, fleet, Record(), NOW, memo)
        node = fleet.nodes["node-007"]
        name, row = next(iter(node.replicas.items()))
        rows = {**node.replicas, name: replace(row, healthy=not row.healthy)}
        fleet = replace(fleet, nodes={**fleet.nodes, node.name: replace(node, replicas=rows)})

    times = timed(lambda: plan(state, fleet, Record(), NOW, memo), 30, before=report)
    figures.line("plan after one replica's report", times, "ms", 10)
