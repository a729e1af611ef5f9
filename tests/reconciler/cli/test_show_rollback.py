"""What an operator reads of a rollback and of the history, word by word."""

from __future__ import annotations

from typing import Any

import pytest

from reconciler import answers
from reconciler.cli import show
from reconciler.model.history import Entry
from reconciler.model.rollback import Rollback

BACK = Rollback("a" * 40, "b" * 40, "b" * 40, frozenset({"b" * 40}), "ann@desk", "orders break", "2026-03-01T10:22:03Z")


def status(*, settled: bool, tip: str, problems: tuple[Any, ...] = ()) -> str:
    git = {
        "source": "repo main", "commit": BACK.to, "subject": "good", "author": "ann", "tip": tip,
        "rollback": BACK.text(), "problems": list(problems), "trouble": "", "troubleFor": None,
    }  # fmt: skip
    doc = {
        "cluster": "sample", "leading": True, "error": "", "git": git, "nodes": [], "instances": [], "changes": [],
        "warnings": [], "converged": False, "settled": settled,
    }  # fmt: skip
    return show.status(doc)


def test_it_is_said_loudly() -> None:
    assert status(settled=True, tip="b" * 40).splitlines() == [
        "sample: ROLLED BACK  0/0 replicas healthy, 0/0 nodes alive",
        "commit aaaaaaaa in force: good  (repo main)",
        "! ROLLED BACK from bbbbbbbb by ann@desk at 2026-03-01T10:22:03Z: orders break",
        "  the tip of the branch, bbbbbbbb, is quarantined and does not run",
        "  this ends with a newer commit in Git, or with 'tdie rollback --cancel', which runs the tip again",
    ]
    assert status(settled=False, tip="b" * 40).startswith("sample: ROLLING BACK")


def test_a_newer_commit_that_is_rejected_is_said_besides() -> None:
    problem = {"code": "KIND", "file": "x.yaml", "line": 1, "column": 2, "message": "unknown"}
    lines = status(settled=True, tip="c" * 40, problems=(problem,)).splitlines()
    assert lines[0].startswith("sample: COMMIT REJECTED")
    assert "  the tip of the branch, cccccccc, cannot be in force (see below)" in lines
    assert lines[-2:] == [
        "commit cccccccc REJECTED; aaaaaaaa stays in force:",
        "  x.yaml:1:2 KIND unknown",
    ]


@pytest.mark.parametrize("colour", ["", "1"])
def test_history(monkeypatch: pytest.MonkeyPatch, colour: str) -> None:
    monkeypatch.setenv("NO_COLOR", colour)
    entries = (
        Entry(1, "a" * 40, "good", "ann", who="ann", since="2026-03-01T10:00:00Z", until="2026-03-01T10:20:00Z",
              healthy="2026-03-01T10:01:00Z", ended="superseded"),
        Entry(2, "b" * 40, "faster", "bob", who="bob", since="2026-03-01T10:20:00Z", until="2026-03-01T10:22:03Z",
              halted="web: 1/3 unhealthy", ended="rolled-back"),
        Entry(3, "a" * 40, "good", "ann", "rollback", "ann@desk", "orders break", since="2026-03-01T10:22:03Z"),
    )  # fmt: skip
    doc = answers.history(entries)
    assert doc["format"] == "tdie/history/1"
    assert show.history(doc["items"]) == [
        "SINCE (UTC)          UNTIL                COMMIT    RESULT       CAUSE     WHO       SUBJECT",
        "2026-03-01 10:22:03  in force             aaaaaaaa  changing     rollback  ann@desk  good",
        "    orders break",
        "2026-03-01 10:20:00  2026-03-01 10:22:03  bbbbbbbb  rolled back  commit    bob       faster",
        "    halted: web: 1/3 unhealthy",
        "2026-03-01 10:00:00  2026-03-01 10:20:00  aaaaaaaa  healthy      commit    ann       good",
    ]
