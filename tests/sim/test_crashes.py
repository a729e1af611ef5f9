"""A crash of a controller, an agent or a keeper before or after any effect of a run ends as the run without it.

`make sim-crashes` tries all of them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import structlog

from tests.sim import mutants
from tests.sim.crashes import Point, fault, play, points

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


def test_no_crash_changes_how_it_ends() -> None:
    reference = play()
    assert not reference.said
    assert len(reference.effects) >= 50
    some = list(points(reference.effects))[::5]
    assert [found for point in some if (found := fault(point, reference))] == []


def test_an_agent_that_forgets_what_it_accepted_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    reference = play()
    mutants.assignments_are_not_written_down(monkeypatch)
    effects = [effect for effect in reference.effects if "starts" in effect.what]
    assert any(fault(Point(effect.number, "after", "agent"), reference) for effect in effects)
