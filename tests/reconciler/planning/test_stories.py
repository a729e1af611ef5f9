"""Golden text: what people see of a plan, story by story."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[3]))
from tests.reconciler.planning.stories import run_story

STORIES = Path(__file__).parents[2] / "golden" / "planning"


@pytest.mark.parametrize("path", sorted(STORIES.glob("*.txt")), ids=lambda path: path.stem)
def test_story(path: Path) -> None:
    script = path.read_text()
    found = run_story(script)
    if os.environ.get("TDIE_REWRITE"):
        path.write_text(found)
    assert found == script


def test_there_are_enough_stories() -> None:
    assert len(list(STORIES.glob("*.txt"))) >= 25
