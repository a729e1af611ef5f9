"""Seeded histories keep every promise and are the same each time; the tools around them do what they say."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from reconciler.simulation.__main__ import CRITICAL, Notes, Played
from reconciler.simulation.history import FAILSAFE, run

pytestmark = pytest.mark.timeout(180)

REGRESSIONS = {
    5: "the first faults",
    20: "a node that forgot its orders waited for a wave that waited for it",
    23: "the first faults",
    72: "the first faults",
    102: "the first faults",
    173: "the first faults",
    229: "the first faults",
    233: "a node said that a replica was fenced, which ran from before it needed a lease",
    870: "what every node has counted as away although its node was lost",
    1155: "what every node has counted as away although its node was drained",
    2673: "a process that nothing kills outlived its lease, and its node came back",
    FAILSAFE + 4: "a replica stayed on a node that may not have its lease",
    FAILSAFE + 48: "a node lost its ledger, and Consul its data before it could say which epoch is the latest",
    FAILSAFE + 2404: "a host that was to be started again lost a lease that it did not use",
    FAILSAFE + 11: "a replica moved although a silent node may run it already",
    FAILSAFE + 15: "a node that had lost a lease refused to promise, so its holder lost it too",
    FAILSAFE + 25: "a leased replica was renamed off its node, and there was no plan any more",
    FAILSAFE + 111: "what nodes that were cut off ran was started elsewhere when Consul was wiped",
    FAILSAFE + 153: "what a drain had stopped at its deadline was said to be missed",
    FAILSAFE + 19692: "what runs where it may not have the lease that a commit asks for was said to move for no reason",
    FAILSAFE + 2532: "what had only been ordered on a node that forgot everything was taken for what ran there",
    23949: "what a wiped machine had run counted as new, and one too many was taken away elsewhere",
    22405: "an order that came 24 s after it was sent was obeyed, when as many as may be were away already",
    FAILSAFE + 8572: "what a node that Consul had forgotten has to run for itself did not count as missed",
    FAILSAFE + 9928: "a node asked Consul every second for each of many locks that it could not have yet",
    13518: "a machine that booted and lost its ledger before it ran anything again was said never to have run it",
    FAILSAFE + 24: "what was on its way back to a node that forgot was said to have run there under that order",
    2539: "what came back starting was stopped while what runs in its place was not well either",
}
"""Histories that once broke a promise, and what was wrong."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("seed", REGRESSIONS)
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


def test_another_seed_is_another_history() -> None:
    assert run(31).digest != run(32).digest


def test_what_was_played_is_not_played_again(tmp_path: Path) -> None:
    file = tmp_path / "notes.jsonl"
    Notes(file).add(Played(first=25, count=25, faults=900, simulated=50000.0, took=20.0, broken=(("seed 30", "why"),)))
    assert Notes(file).played[25].broken == (("seed 30", "why"),)
    assert len(file.read_text(encoding="utf-8").splitlines()) == 1


def test_notes_tell_of_the_histories_that_are_asked_for_alone(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes.jsonl")
    for first in (0, 100, 200):
        notes.add(Played(first=first, count=100, faults=900, simulated=50000.0, took=20.0))
    assert [each.first for each in notes.of(100, 100)] == [100]


def test_what_other_code_played_does_not_count(tmp_path: Path) -> None:
    file = tmp_path / "notes.jsonl"
    notes = Notes(file)
    notes._code = "before"
    notes.add(Played(first=0, count=25, faults=900, simulated=50000.0, took=20.0))
    assert not Notes(file).played
    assert not file.read_text(encoding="utf-8")


def test_the_code_of_a_history_is_all_that_it_runs() -> None:
    """What was played with other code is played again; nothing that a history loads may be missed by that."""
    program = (
        "from reconciler.simulation.__main__ import files, play\n"
        "before = files()\n"
        f"play({FAILSAFE}, 1)\n"
        "assert any(each.match('agent/leases/tender.py') for each in before)\n"
        "print(sorted({str(each) for each in files()} - {str(each) for each in before}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60.0, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
