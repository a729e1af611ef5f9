"""What was approved is what may run, or the person is told what differs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from reconciler.execution.approvals import NothingLost, PlanSuperseded, approve, must_be_lost
from reconciler.model.observed import Record
from reconciler.model.plan import Cause, Change, Plan, Verdict


def change(id_: str, replica: str, cause: Cause = Cause.COMMIT) -> Change:
    return Change(id_, replica, replica.split(".")[0], Verdict.REPLACE, cause, "c1", "a")


def plan(*changes: Change) -> Plan:
    return Plan("c1", changes, (), {}, digest="d")


def test_the_same_plan_is_approved() -> None:
    assert approve(plan(change("1", "web.0"), change("2", "web.1")), {"1": "web.0", "2": "web.1"}) == {"1", "2"}


def test_what_is_done_meanwhile_does_not_matter() -> None:
    assert approve(plan(change("2", "web.1")), {"1": "web.0", "2": "web.1"}) == {"1", "2"}


def test_an_altered_change_is_named() -> None:
    with pytest.raises(PlanSuperseded, match=r"by commit c1: altered: web\.0"):
        approve(plan(change("9", "web.0")), {"1": "web.0"})


def test_a_new_change_by_a_commit_is_named() -> None:
    with pytest.raises(PlanSuperseded, match=r"new: db\.0"):
        approve(plan(change("1", "web.0"), change("3", "db.0")), {"1": "web.0"})


@pytest.mark.parametrize("cause", [Cause.DRIFT, Cause.NODE_LOST])
def test_healing_needs_no_new_approval(cause: Cause) -> None:
    assert approve(plan(change("1", "web.0"), change("3", "db.0", cause)), {"1": "web.0"}) == {"1"}


@pytest.mark.parametrize(
    ("digest", "rewound", "waits"),
    [("", False, False), ("nodes", False, True), ("", True, True), ("nodes", True, True)],
)
def test_only_what_waits_for_it_can_be_confirmed_as_lost(digest: str, rewound: bool, waits: bool) -> None:
    shown = replace(plan(), lost_digest=digest)
    if waits:
        must_be_lost(shown, Record(rewound=rewound))
        return
    with pytest.raises(NothingLost, match="NOTHING_LOST"):
        must_be_lost(shown, Record(rewound=rewound))
