"""What is broken on purpose is caught: the histories that `caught.txt` names show it again."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

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


@dataclass
class Fitting:
    """Stands in for a patch, and notes what does not take the arguments of the function in whose place it is put."""

    misfits: list[str] = field(default_factory=list)

    def setattr(self, target: object, name: str, value: object) -> None:
        old = getattr(target, name)
        if not callable(old):
            return
        assert callable(value), name
        taken = inspect.signature(old).parameters.values()
        try:
            inspect.signature(value).bind(
                *(each for each in taken if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)),
                **{each.name: each for each in taken if each.kind is each.KEYWORD_ONLY},
            )
        except TypeError as error:
            self.misfits.append(f"{name}: {error}")


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_fits_the_code_it_breaks(mutant: Mutant) -> None:
    """One that fails where it is called only stops what it should break, and then shows nothing about the promise."""
    fitting = Fitting()
    mutant.breaks(cast("pytest.MonkeyPatch", fitting))
    assert fitting.misfits == []


def test_every_promise_can_be_broken_in_at_least_two_ways() -> None:
    found = Counter(mutant.promise for mutant in MUTANTS)
    assert {promise: found[promise] for promise in PROMISES if found[promise] < 2} == {}


def test_the_table_says_what_there_is() -> None:
    assert CAUGHT.read_text(encoding="utf-8").splitlines() == list(table(dict(known())))
