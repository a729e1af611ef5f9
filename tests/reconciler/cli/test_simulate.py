"""`tdie simulate`: what would happen is told as a story, and the exit code says how it ends.

TDIE_REWRITE=1 writes what is told now.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from reconciler.cli.main import main

GOLDEN = Path(__file__).parents[2] / "golden" / "simulate"
FLEET = str(GOLDEN / "fleet")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize(
    ("name", "nodes", "ends"),
    [
        ("one-node", ["node-2"], 0),
        ("the-only-place", ["node-1"], 2),
        ("too-many", ["node-1", "node-2", "node-3"], 2),
    ],
)
def test_a_node_that_dies(name: str, nodes: list[str], ends: int, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for node in nodes for word in ("--lose", node)]
    assert main(["simulate", "--folder", FLEET, *words]) == ends
    told, golden = capsys.readouterr().out, GOLDEN / f"{name}.txt"
    if os.environ.get("TDIE_REWRITE") == "1":
        golden.write_text(told, encoding="utf-8")
    assert told == golden.read_text(encoding="utf-8")


def test_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--folder", FLEET, "--lose", "node-1", "-o", "json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert told["format"] == "tdie/simulation/1"
    assert told["missing"] == ["inbox.0: NO_PLACE 3 nodes: 1 not alive, 2 fail where zone == 'a'"]


def test_a_script_is_printed_with_its_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "story.txt"
    script.write_text("fleet a\ncontroller one\ncommit web@1.0 on 1\nsettle\nshow\n")
    assert main(["simulate", str(script)]) == 0
    assert capsys.readouterr().out.endswith("show\n    a: web.0 web@1.0.0\n")


@pytest.mark.timeout(180)
def test_a_history_is_told_with_its_faults(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--seed", "3"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == "every promise was kept"
    assert len(told) > 20


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "say what to simulate"),
        (["story.txt", "--seed", "1"], "say what to simulate"),
        (["--folder", FLEET, "--lose", "node-9"], "NO_NODE the cluster has no node node-9 (it has node-1, node-2, node-3)"),
        (["nowhere.txt"], "nowhere.txt"),
        ([str(GOLDEN / "fleet" / "cluster.yaml")], "line 1: what does 'apiVersion: tdie/v1' mean?"),
        (["--folder", str(GOLDEN / "broken"), "--lose", "a"], "COMMIT_REJECTED"),
    ],
)  # fmt: skip
def test_what_cannot_be_simulated_is_said(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", *words]) == 1
    assert said in capsys.readouterr().err
