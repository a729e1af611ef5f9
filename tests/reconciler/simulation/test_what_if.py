"""What would happen to a live cluster: it is simulated where things run now, not where they would be placed anew."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog
from pydantic import TypeAdapter

from reconciler.model.desired import DesiredState
from reconciler.model.observed import ObservedState
from reconciler.simulation import virtual
from reconciler.simulation.script import Stage
from reconciler.simulation.what_if import lose
from reconciler.simulation.world import World

LIVE = ("fleet a b c", "controller one", "commit web@1.0 on 4", "commit db@1.0 on 1, lease strict", "settle",
        "power off a", "settle", "power on a", "drain b", "settle", "uncordon b", "cordon c", "settle")  # fmt: skip


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


async def _live(script: tuple[str, ...]) -> tuple[DesiredState, ObservedState]:
    stage = Stage(World())
    try:
        for number, text in enumerate(script):
            await stage.do(number, text)
        leader = stage.world.leader()
        assert leader is not None
        assert leader.board.desired is not None
        assert leader.board.observed is not None
        return leader.board.desired, leader.board.observed
    finally:
        await stage.world.close()


def _sent(kind: type, value: object) -> object:
    """As another process gets it."""
    adapter: TypeAdapter[object] = TypeAdapter(kind)
    return adapter.validate_python(adapter.dump_python(value, mode="json"))


def test_it_begins_where_things_run_now() -> None:
    back = (*LIVE[:8], "wait 10s")
    desired, observed = virtual.run(_live((*back, "drain b", "settle", "uncordon b")))
    desired, observed = _sent(DesiredState, desired), _sent(ObservedState, observed)  # type: ignore[assignment]
    assert isinstance(desired, DesiredState)
    assert isinstance(observed, ObservedState)
    now = {name: sorted(view.replicas) for name, view in observed.nodes.items()}
    assert now["b"] == []
    told = lose(desired, ["a"], observed)
    assert told.well, told.text()
    first = next(line for line in told.lines if "a dies" in line)
    assert first.endswith(f"a dies, and with it {', '.join(now['a'])}")


def test_what_is_gone_already_stays_gone() -> None:
    desired, observed = virtual.run(_live((*LIVE[:5], "power off a", "settle")))
    told = lose(desired, ["b"], observed)
    assert "  a: nothing" in told.lines
    assert told.well, told.text()


def test_a_cordoned_node_takes_nothing() -> None:
    desired, observed = virtual.run(_live((*LIVE[:5], "drain c", "settle")))
    told = lose(desired, ["b"], observed)
    assert "  c: nothing" in told.lines, told.text()
