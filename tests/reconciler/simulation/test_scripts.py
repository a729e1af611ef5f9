"""Stories on a simulated fleet: the real loop, planner and agents on virtual time. TDIE_REWRITE=1 writes what happens now."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from reconciler.simulation.clauses import BadLine
from reconciler.simulation.script import run

SCRIPTS = sorted((Path(__file__).parents[2] / "scripts").glob("*.txt"))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_story(script: Path) -> None:
    told = script.read_text(encoding="utf-8")
    happened = run(told)
    if os.environ.get("TDIE_REWRITE") == "1":
        script.write_text(happened, encoding="utf-8")
    assert happened == told


def test_the_same_seed_tells_the_same_story() -> None:
    script = SCRIPTS[0].read_text(encoding="utf-8")
    assert run(script, seed=7) == run(script, seed=7)


def test_a_line_nobody_understands_is_named() -> None:
    with pytest.raises(BadLine, match="line 2: what does 'dance' mean"):
        run("fleet a\ndance\n")
