"""Seeded histories keep every promise, are the same each time, and catch what is broken on purpose."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from agent.errors import TdieError
from agent.keeper.protocol import HostRow
from agent.node import Agent
from agent.steps import Stop
from reconciler.planning.fleet import Sighting
from reconciler.simulation import history
from reconciler.simulation.__main__ import CRITICAL
from reconciler.simulation.history import run

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("seed", [5, 23, 72, 102, 173, 229])  # each of them once showed something that was wrong
def test_every_promise_is_kept(seed: int) -> None:
    outcome = run(seed)
    assert not outcome.violations, "\n".join((*outcome.story, *map(str, outcome.violations)))
    assert outcome.faults >= 20


def test_the_same_seed_is_the_same_history_in_any_process() -> None:
    script = "import structlog; structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))\n"
    script += "from reconciler.simulation.history import run; print(run(31).digest)"
    root = Path(__file__).parents[2]
    found = {
        subprocess.run(
            [sys.executable, "-c", script], cwd=root, env={"PYTHONHASHSEED": number, "PATH": "/usr/bin:/bin"},
            capture_output=True, text=True, timeout=60, check=True,
        ).stdout
        for number in ("1", "2")
    }  # fmt: skip
    assert len(found) == 1


# ------------------------------------------------------------------------------- what is broken on purpose is caught


def _everything_counts_as_healthy(patch: pytest.MonkeyPatch) -> None:
    """What was sent counts as done."""
    patch.setattr(Sighting, "healthy", property(lambda self: self.entry is not None))


def _a_restarted_agent_starts_afresh(patch: pytest.MonkeyPatch) -> None:
    """An agent that starts stops what it finds."""
    read = Agent._all_read

    def all_read(self: Agent) -> None:
        read(self)
        if self._edges.agent[-2:] != "-1":
            for row in self.table.rows.values():
                _stop(self, row)

    patch.setattr(Agent, "_all_read", all_read)


def _stop(agent: Agent, row: HostRow) -> None:
    import asyncio

    task = asyncio.get_running_loop().create_task(agent._carrier.carry(Stop(row.replica, "afresh")))
    task.add_done_callback(lambda done: done.exception() if not done.cancelled() else None)


MUTANTS = {
    "never more than maxParallel away": (_everything_counts_as_healthy,),
    "nothing stops without a cause": (_a_restarted_agent_starts_afresh,),
}
CASES = [(promise, mutant) for promise, mutants in MUTANTS.items() for mutant in mutants]
SEEDS = 20  # within which a mutant must be caught; most are in the first few


@pytest.mark.parametrize(("promise", "mutant"), CASES, ids=[mutant.__name__[1:] for _, mutant in CASES])
def test_a_mutant_is_caught(promise: str, mutant: object, monkeypatch: pytest.MonkeyPatch) -> None:
    assert callable(mutant)
    mutant(monkeypatch)
    monkeypatch.setattr(history, "REST", 300.0)
    seen: set[str] = set()
    for seed in range(SEEDS):
        try:
            seen |= {violation.invariant for violation in run(seed).violations}
        except (TdieError, BaseExceptionGroup) as error:  # a mutant may also bring the whole world down
            seen.add(type(error).__name__)
        if promise in seen:
            return
    pytest.fail(f"{promise}: not caught in {SEEDS} histories, only {sorted(seen)}")
