"""Trouble before or after any effect of a transition: it ends as without. `make sim-crashes` plays all points, this some of each.

A point that is named here is played alone by `python -m tests.sim.crashes NAME POINT before|after TROUBLE`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import structlog

from agent import keys
from agent.clock import Monotonic
from agent.expiry import Expiry
from reconciler.execution.leadership import Leadership
from reconciler.model.observed import ObservedState
from reconciler.observe.fleet import Fleet
from tests.sim import mutants
from tests.sim.crashes import fault, points, reference
from tests.sim.transitions import transitions

pytestmark = pytest.mark.timeout(180)
SOME = 8  # points of each transition


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    reference.cache_clear()
    structlog.reset_defaults()


@pytest.mark.parametrize("name", transitions())
def test_ends_as_without_trouble(name: str) -> None:
    assert reference(name).broken == ()
    every = list(points(name))
    assert [found for point in every[:: len(every) // SOME + 1] if (found := fault(name, point))] == []


@pytest.mark.parametrize(
    ("name", "at"),
    [("suspend and resume", "writes set tdie/sim/record/suspended"), ("failsafe lease changes hands", "sends ")],
)
def test_ends_as_without_an_answer_that_was_lost(name: str, at: str) -> None:
    """Effects after which it once did not."""
    effects = reference(name).effects
    some = [each for each in points(name) if each.trouble == "answer" and at in effects[each.number].what]
    assert len(some) >= 4  # both words, each before and after
    assert [found for point in some if (found := fault(name, point))] == []


def test_there_is_trouble_of_every_kind() -> None:
    kinds = {point.trouble for name in ("first start", "new version, one at a time") for point in points(name)}
    assert kinds == {"controller", "agent", "keeper", "answer", "meanwhile"}
    assert len(transitions()) >= 40


def _plans_go_on(patch: pytest.MonkeyPatch) -> None:
    """A leader makes its first plan with what the one before it knew of the fleet, and what it sends does not expire."""
    patch.setattr(Fleet, "expiry", lambda *_: Expiry("", 0.0))  # it knows no clock yet
    patch.setattr(Expiry, "over", lambda *_: False)
    look, known = Fleet.snapshot, dict[str, Any]()

    def snapshot(fleet: Fleet, listed: Iterable[str], lost_after: float) -> tuple[ObservedState, Monotonic | None]:
        seen, again = look(fleet, listed, lost_after)
        before, known["last"], known["by"] = known.get("last"), seen, fleet
        if before is None or fleet in known.setdefault("plan", [fleet]):
            return seen, again
        known["plan"].append(fleet)
        return replace(before, epoch=seen.epoch), fleet._clock.now()

    patch.setattr(Fleet, "snapshot", snapshot)


def _only_the_first_waits(patch: pytest.MonkeyPatch) -> None:
    """Only the leader that finds an empty Consul waits for nodes, until it has heard of all that it remembers."""
    begin = Leadership._new_epoch

    async def new_epoch(self: Leadership, session: str, at_least: int, *, rewound: bool = False) -> tuple[int, bool]:
        empty = await self._consul.get(keys.epoch(self.cluster)) is None
        epoch, _ = await begin(self, session, at_least, rewound=rewound)
        return epoch, empty

    patch.setattr(Leadership, "_new_epoch", new_epoch)
    patch.setattr(Fleet, "all_told", lambda fleet, listed: all(fleet._nodes[name].told for name in listed))


@pytest.mark.parametrize(
    ("breaks", "name", "trouble", "at", "seen"),
    [
        (_plans_go_on, "new version, one at a time", "controller", "sends 1.2 to a", "sent to it under another number"),
        (_only_the_first_waits, "Consul loses its data", "controller", "delete tdie/sim/rewound", "started web"),
        (mutants.restarted_agents_see_nothing, "scale up", "agent", "starts", "is started, and it runs"),
        (mutants.restarted_agents_start_afresh, "scale up", "agent", "starts", "not keeps web.0"),
        (mutants.sessions_of_an_earlier_life_stay, "scale up", "controller", "writes lock", "nobody leads"),
    ],
)
def test_what_only_trouble_shows_is_seen(
    breaks: Callable[[pytest.MonkeyPatch], None],
    name: str,
    trouble: str,
    at: str,
    seen: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    without = reference(name)
    breaks(monkeypatch)
    reference.cache_clear()
    calm = reference(name)
    assert (calm.broken, calm.facts) == ((), without.facts)
    some = [each for each in points(name) if each.trouble == trouble and at in calm.effects[each.number].what]
    assert any(seen in fault(name, point) for point in some)
