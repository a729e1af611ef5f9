"""What is broken on purpose is caught: the histories that `caught.txt` names show it again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import structlog

from reconciler.simulation.__main__ import CRITICAL
from reconciler.simulation.observer import PROMISES
from tests.sim.mutants import CAUGHT, MUTANTS, Mutant, known, shows, table

pytestmark = pytest.mark.timeout(180)

CHEAP = MUTANTS[:: max(1, len(MUTANTS) // 8)]  # `make sim-mutants` looks for all


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("mutant", CHEAP, ids=lambda mutant: mutant.name)
def test_a_mutant_is_caught(mutant: Mutant) -> None:
    assert shows(mutant, known()[mutant.name]), "other code, other histories? `make sim-mutants` looks for another seed"


def test_every_promise_can_be_broken_in_at_least_two_ways() -> None:
    found = Counter(mutant.promise for mutant in MUTANTS)
    assert {promise: found[promise] for promise in PROMISES if found[promise] < 2} == {}


def test_the_table_says_what_there_is() -> None:
    assert CAUGHT.read_text(encoding="utf-8").splitlines() == list(table(dict(known())))
