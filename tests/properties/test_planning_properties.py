"""What must hold for every plan: settled means settled, same bytes, every prefix ends alike, never too many away."""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.clock import Monotonic
from agent.wire import Capacity, Resources
from reconciler.model.desired import (
    ClusterSpec,
    Dependency,
    DesiredState,
    InstanceSpec,
    NodeSpec,
    Placement,
    Share,
    SyncPolicy,
    UpdatePolicy,
)
from reconciler.model.observed import ObservedState, Presence, Record
from reconciler.model.plan import Plan, Verdict
from reconciler.planning import Memo, plan
from reconciler.simulation.executed import empty_fleet, executed, sent

sys.path.append(str(Path(__file__).parents[2]))
from tests.reconciler.planning.stories import instance

START = Monotonic(1_000_000.0)
NODES = ("a", "b", "c", "d")
Strategy = Literal["evenness", "least-loaded", "pack"]
NAMES = ("ant", "bee", "cat", "dog")
SLOW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def instances(draw: st.DrawFn, name: str) -> InstanceSpec:
    """One instance; it may only depend on those before it in the alphabet."""
    count = draw(st.integers(0, 4))
    shape = {"per_node": 1 + count % 2} if draw(st.booleans()) and count < 3 else {"replicas": count}
    earlier = [other for other in NAMES if other < name]
    depends = draw(st.sampled_from([None, None, *earlier])) if earlier else None
    strategy: Strategy = draw(st.sampled_from(["least-loaded", "least-loaded", "pack", "evenness"]))
    return instance(
        name,
        f"{name}@{draw(st.sampled_from(['1.0', '1.1', '1.2']))}",
        settings={"x": draw(st.integers(0, 1))},
        runtime=draw(st.sampled_from(["python", "exec"])),
        wave=draw(st.integers(0, 1)),
        depends_on=(Dependency(depends),) if depends else (),
        placement=Placement(
            where=draw(st.sampled_from(["", "", "zone == 'x'", "node != 'a'"])),
            spread=draw(st.sampled_from(["", "zone"])),
            max_per_node=draw(st.sampled_from([None, None, 2])),
            strategy=strategy,
            rebalance=draw(st.sampled_from(["never", "gradual"])) if strategy != "pack" else "never",
            prefer=draw(st.sampled_from([(), (), ("zone == 'y'",)])),
        ),
        resources=Resources(cpu=draw(st.sampled_from([None, 1.0, 2.0]))),
        update=UpdatePolicy(max_parallel=draw(st.sampled_from([Share(1), Share(2), Share(50, True)]))),
        **shape,
    )


@st.composite
def commits(draw: st.DrawFn) -> DesiredState:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, min_size=1))
    nodes = draw(st.lists(st.sampled_from(NODES), unique=True, min_size=2))
    specs = {n: NodeSpec(n, {"zone": "x" if n < "c" else "y"}, Capacity(slots=40, cpu=80.0)) for n in sorted(nodes)}
    chosen = {name: draw(instances(name)) for name in sorted(names)}
    kept = {n: replace(s, depends_on=tuple(d for d in s.depends_on if d.instance in chosen)) for n, s in chosen.items()}
    cluster = ClusterSpec("c", specs, sync=SyncPolicy(max_prune=Share(100, percent=True)))
    return DesiredState(draw(st.text("0123456789abcdef", min_size=8, max_size=8)), cluster, kept)


@st.composite
def histories(draw: st.DrawFn) -> tuple[DesiredState, DesiredState]:
    """Two commits; in the second an instance of the first may live on under another name."""
    first, second = draw(commits()), draw(commits())
    left = sorted(first.instances.keys() - second.instances.keys())
    came = sorted(second.instances.keys() - first.instances.keys())
    renames = draw(st.booleans())
    if left and came and renames:
        renamed = replace(second.instances[came[0]], moved_from=left[0])
        second = replace(second, instances={**second.instances, came[0]: renamed})
    return first, second


def fleet() -> ObservedState:
    """All four machines, so that a commit may list or leave out any of them."""
    cluster = ClusterSpec("c", {n: NodeSpec(n) for n in NODES})
    return empty_fleet(DesiredState("", cluster, {}))


def what_runs(observed: ObservedState) -> list[tuple[str, str, str]]:
    """Every running replica with its node and spec."""
    return sorted(
        (node, name, row.spec_hash) for node, view in observed.nodes.items() for name, row in view.replicas.items()
    )


def settle(desired: DesiredState, observed: ObservedState, memo: Memo | None = None) -> tuple[ObservedState, Plan]:
    """Plan and carry out until nothing goes out any more."""
    for _ in range(120):
        made = plan(desired, observed, Record(), START, memo)
        if not made.targets:
            return observed, made
        observed = executed(made, observed, START)
    raise AssertionError(f"never settles: {made.changes} {made.holds}")


def only_unplaced(made: Plan) -> bool:
    """Nothing left but what has no place, and what waits for that."""
    reasons = {hold.reason.value for hold in made.holds}
    return not made.changes or (
        "NO_PLACE" in reasons and reasons <= {"NO_PLACE", "EARLIER_WAVE", "DEPENDENCY", "REBALANCING"}
    )


@SLOW
@given(commits(), commits())
def test_a_plan_carried_out_leaves_nothing_to_do(first: DesiredState, second: DesiredState) -> None:
    observed, made = settle(first, fleet())
    assert only_unplaced(made)
    observed, made = settle(second, observed)
    assert only_unplaced(made), (made.changes, made.holds)
    again = plan(second, observed, Record(), START)
    assert not again.targets
    if not made.changes:
        wanted = {name for name, spec in second.instances.items() if spec.replicas or spec.per_node}
        running = {row.instance for view in observed.nodes.values() for row in view.replicas.values()}
        assert running <= wanted


@SLOW
@given(commits(), commits(), st.integers(0, 2**32))
def test_the_order_of_input_does_not_matter(first: DesiredState, second: DesiredState, seed: int) -> None:
    observed, _ = settle(first, fleet())
    rng = random.Random(seed)

    def shuffled(mapping: Mapping[str, Any]) -> dict[str, Any]:
        return dict(rng.sample(list(mapping.items()), len(mapping)))

    mixed = replace(
        second,
        instances=shuffled(second.instances),
        cluster=replace(second.cluster, nodes=shuffled(second.cluster.nodes)),
    )
    views = {n: replace(view, replicas=shuffled(view.replicas)) for n, view in shuffled(observed.nodes).items()}
    assert plan(mixed, replace(observed, nodes=views), Record(), START) == plan(second, observed, Record(), START)


@SLOW
@given(histories(), st.none() | st.sampled_from(NODES), st.lists(st.sets(st.sampled_from(NODES)), max_size=6))
def test_any_part_replanned_reaches_the_same_state(
    history: tuple[DesiredState, DesiredState], lost: str | None, parts: list[set[str]]
) -> None:
    """Whatever nodes carried out their part of a plan: the rest goes where it would have gone, replica by replica."""
    first, second = history
    observed, _ = settle(first, fleet())
    if lost is not None:
        observed = replace(
            observed, nodes={**observed.nodes, lost: replace(observed.nodes[lost], presence=Presence.LOST)}
        )
    whole, _ = settle(second, observed)
    for part in parts:
        made = plan(second, observed, Record(), START)
        observed = executed(made, observed, START, nodes=part)
    partly, _ = settle(second, observed)
    assert what_runs(partly) == what_runs(whole)


@SLOW
@given(histories(), st.lists(st.sampled_from(["silent", "lost", "sick", "sent", "done"]), max_size=8), st.randoms())
def test_a_memo_changes_nothing(
    history: tuple[DesiredState, DesiredState], events: list[str], rng: random.Random
) -> None:
    first, second = history
    memo = Memo()
    observed, _ = settle(first, fleet(), memo)
    for event in events:
        made = plan(second, observed, Record(), START, memo)
        assert made == plan(second, observed, Record(), START)
        observed = _happen(event, made, observed, rng)
    assert plan(second, observed, Record(), START, memo) == plan(second, observed, Record(), START)
    assert plan(first, observed, Record(), START, memo) == plan(first, observed, Record(), START)


def _happen(event: str, made: Plan, observed: ObservedState, rng: random.Random) -> ObservedState:
    node = rng.choice(NODES)
    view = observed.nodes[node]
    if event == "sent":
        return sent(made, observed, [node])
    if event == "done":
        return executed(made, observed, START, nodes=[node])
    if event == "sick" and view.replicas:
        name = rng.choice(sorted(view.replicas))
        row = replace(view.replicas[name], healthy=not view.replicas[name].healthy)
        return replace(observed, nodes={**observed.nodes, node: replace(view, replicas={**view.replicas, name: row})})
    other = Presence.LOST if event == "lost" else Presence.UNREACHABLE
    presence = Presence.ALIVE if view.presence is not Presence.ALIVE else other
    return replace(observed, nodes={**observed.nodes, node: replace(view, presence=presence)})


@SLOW
@given(commits(), st.integers(1, 3))
def test_never_more_than_max_parallel_are_away(first: DesiredState, parallel: int) -> None:
    limited = {n: replace(s, update=UpdatePolicy(max_parallel=Share(parallel))) for n, s in first.instances.items()}
    first = replace(first, instances=limited)
    observed, made = settle(first, fleet())
    changed = {n: _next_version(spec) for n, spec in first.instances.items()}
    second = replace(first, commit="second", instances=changed)
    for _ in range(80):
        made = plan(second, observed, Record(), START)
        if not made.targets:
            break
        out = sent(made, observed)
        for name in second.instances:
            away = _away(out, name)
            assert away <= parallel, (name, away)
        observed = executed(made, observed, START)


def _away(observed: ObservedState, instance_name: str) -> int:
    return sum(
        1
        for view in observed.nodes.values()
        for entry in (view.assignment.replicas if view.assignment else ())
        if entry.instance == instance_name
        and ((row := view.replicas.get(entry.replica)) is None or row.spec_hash != entry.spec_hash)
    )


def _next_version(spec: InstanceSpec) -> InstanceSpec:
    newer = instance(spec.name, f"{spec.name}@9.0").spec
    return replace(spec, spec=newer, spec_hash=newer.hash())


@SLOW
@given(commits(), st.sampled_from(NAMES))
def test_touching_one_instance_changes_nothing_of_the_others(first: DesiredState, name: str) -> None:
    first = replace(first, instances={n: replace(s, depends_on=(), wave=0) for n, s in first.instances.items()})
    observed, before = settle(first, fleet())
    if name not in first.instances:
        return
    touched = {**first.instances, name: _next_version(first.instances[name])}
    made = plan(replace(first, commit=first.commit, instances=touched), observed, Record(), START)
    others = [c for c in made.changes if c.instance != name]
    assert others == [c for c in before.changes if c.instance != name]


@SLOW
@given(commits(), commits(), st.sets(st.sampled_from(NODES)))
def test_nothing_is_sent_to_or_stopped_on_a_silent_node(
    first: DesiredState, second: DesiredState, silent: set[str]
) -> None:
    observed, _ = settle(first, fleet())
    nodes = {n: replace(v, presence=Presence.UNREACHABLE) if n in silent else v for n, v in observed.nodes.items()}
    observed = replace(observed, nodes=nodes)
    made = plan(second, observed, Record(), START)
    assert not silent & made.targets.keys()
    held = {hold.change for hold in made.holds}
    for change in made.changes:
        if change.verdict is not Verdict.START and {change.node, change.from_node} & silent:
            assert change.id in held, change
