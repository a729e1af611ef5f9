"""What the doctor finds in a status document, and the words in which it says what to do."""

from __future__ import annotations

from typing import Any

import pytest

from reconciler.doctor import Finding, of_cluster, of_disk, worst_first

GIT: dict[str, Any] = {
    "commit": "a" * 40,
    "tip": "a" * 40,
    "source": "repo main",
    "trouble": "",
    "problems": [],
    "rollback": None,
}
NODE: dict[str, Any] = {
    "name": "n1",
    "presence": "alive",
    "detail": "",
    "listed": True,
    "lockedBy": "",
    "wish": "",
    "version": "1",
    "problems": [],
}
ROW: dict[str, Any] = {"name": "web", "wanted": 2, "healthy": 2, "lastError": "", "holds": []}


def held(reason: str, detail: str = "why") -> dict[str, Any]:
    return {"hold": {"reason": reason, "detail": detail}}


def doc(**other: Any) -> dict[str, Any]:
    found = {
        "git": GIT,
        "nodes": [NODE],
        "instances": [ROW],
        "changes": [],
        "error": "",
        "warnings": [],
        "suspended": [],
    }
    return {**found, **other}


def bad(found: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    findings = worst_first(list(of_cluster(found, "1")))
    return [(f.level, f.what, f.detail, f.hint) for f in findings if f.level != "ok"]


def test_a_cluster_that_is_well() -> None:
    assert list(of_cluster(doc(), "1")) == [
        Finding("ok", "git", "commit aaaaaaaa of repo main is in force"),
        Finding("ok", "fleet", "1/1 nodes alive, 1/1 instances healthy"),
    ]


PROBLEM = {"file": "x.yaml", "line": 1, "column": 2, "code": "KIND", "message": "unknown"}
BACK = {"to": "b" * 40, "who": "ann"}


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"git": {**GIT, "trouble": "GIT_UNREACHABLE repo: away"}}, ("fail", "git", "GIT_UNREACHABLE repo: away", "")),
        (
            {"git": {**GIT, "problems": [PROBLEM]}},
            ("fail", "git", "commit aaaaaaaa is rejected: x.yaml:1:2 KIND unknown", "tdie validate --rev aaaaaaaa"),
        ),
        (
            {"git": {**GIT, "rollback": BACK}},
            (
                "warn",
                "git",
                "commit bbbbbbbb runs instead of the tip, rolled back by ann",
                "push a newer commit, or tdie rollback --cancel",
            ),
        ),
        (
            {"suspended": ["the cluster is suspended by ann"]},
            ("warn", "suspended", "the cluster is suspended by ann", "tdie resume"),
        ),
        (
            {"nodes": [{**NODE, "presence": "lost", "detail": "both say so"}]},
            ("fail", "node n1", "lost: both say so", ""),
        ),
        (
            {"nodes": [{**NODE, "listed": False}]},
            ("warn", "node n1", "its agent is registered, but Git does not list it", ""),
        ),
        (
            {"nodes": [{**NODE, "lockedBy": "bob: disk"}]},
            ("warn", "node n1", "locked by bob: disk", "tdie unlock node n1"),
        ),
        ({"nodes": [{**NODE, "wish": "drained by bob"}]}, ("warn", "node n1", "drained by bob", "tdie uncordon n1")),
        ({"nodes": [{**NODE, "version": "0.9"}]}, ("warn", "node n1", "its agent is version 0.9, this is 1", "")),
        (
            {"nodes": [{**NODE, "problems": [{"code": "DISK_FULL", "detail": "2 % free"}]}]},
            ("warn", "node n1", "DISK_FULL 2 % free", ""),
        ),
        (
            {"instances": [{**ROW, "healthy": 1, "lastError": "boom"}]},
            ("fail", "instance web", "1/2 healthy: boom", "tdie explain web"),
        ),
        (
            {"instances": [{**ROW, "healthy": 0, "holds": ["NO_PLACE: no node fits"]}]},
            ("fail", "instance web", "0/2 healthy: NO_PLACE: no node fits", "tdie explain web"),
        ),
        (
            {"changes": [held("CANARY_WAITS"), held("CANARY_WAITS")]},
            ("warn", "plan", "2 changes held CANARY_WAITS: why", "tdie approve INSTANCE"),
        ),
        (
            {"changes": [held("ROLLOUT_HALTED")]},
            ("fail", "plan", "1 change held ROLLOUT_HALTED: why", "push a fix, or tdie rollback"),
        ),
        ({"error": "CONSUL away"}, ("fail", "controller", "CONSUL away", "")),
        ({"warnings": ["a foreign service"]}, ("warn", "cluster", "a foreign service", "")),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_wrong_and_what_to_do(found: dict[str, Any], told: tuple[str, str, str, str]) -> None:
    assert bad(doc(**found)) == [told]


def test_what_goes_by_itself_is_not_told() -> None:
    assert bad(doc(changes=[held("SOAKING"), held("IN_FLIGHT"), {"hold": None}])) == []


def test_the_worst_comes_first() -> None:
    found = worst_first(
        [Finding("ok", "a", ""), Finding("warn", "b", ""), Finding("fail", "c", ""), Finding("warn", "d", "")]
    )
    assert [one.what for one in found] == ["c", "b", "d", "a"]


def test_a_full_disk() -> None:
    assert of_disk("/x", 100, 50) == Finding("ok", "disk", "/x: 50% of the disk is free")
    assert of_disk("/x", 100, 4) == Finding("warn", "disk", "/x: 4% of the disk is free", "installs are refused")
