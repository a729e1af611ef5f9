"""Pure: what is wrong with a cluster or this machine, from what can be seen, the worst first, each with what to do next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Level = Literal["fail", "warn", "ok"]
LEAST_FREE = 0.05  # of a disk; agents refuse to install below
# What waits for a person, and the command by which it goes on.
_ASKS = {
    "NOT_APPROVED": "tdie apply",
    "CANARY_WAITS": "tdie approve INSTANCE",
    "PRUNE_HELD": "tdie apply --confirm-prune",
    "MASS_FAILURE_HOLD": "tdie apply --confirm-lost",
    "NODE_FORGOTTEN": "tdie apply --confirm-lost",
    "SELF_HEAL_OFF": "tdie apply",
}
_STUCK = {
    "ROLLOUT_HALTED": "push a fix, or tdie rollback",
    "PACKAGE_FAILED": "tdie explain INSTANCE",
    "PACKAGE_MISSING": "tdie package push",
    "NO_PLACE": "tdie explain INSTANCE",
}
NEXT: Mapping[str, str] = {**_ASKS, **_STUCK}
"""Why a change is held → what somebody does about it; what ends by itself is not in it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    level: Level
    what: str
    detail: str
    hint: str = ""


def of_cluster(doc: Mapping[str, Any], version: str) -> Iterator[Finding]:
    """What the leader's status document says, in the order in which an operator should see to it."""
    yield from _git(doc["git"])
    for word in doc.get("suspended", ()):
        yield Finding("warn", "suspended", word, "tdie resume")
    for node in doc["nodes"]:
        yield from _node(node, version)
    for row in doc["instances"]:
        if row["healthy"] < row["wanted"]:
            why = row["lastError"] or (row["holds"][0] if row["holds"] else "not healthy yet")
            detail = f"{row['healthy']}/{row['wanted']} healthy: {why}"
            yield Finding("fail", f"instance {row['name']}", detail, f"tdie explain {row['name']}")
    yield from _waits(doc["changes"])
    if doc["error"]:
        yield Finding("fail", "controller", doc["error"])
    for warning in doc["warnings"]:
        yield Finding("warn", "cluster", warning)
    well = sum(row["healthy"] >= row["wanted"] for row in doc["instances"])
    alive = sum(node["presence"] == "alive" for node in doc["nodes"])
    yield Finding(
        "ok", "fleet", f"{alive}/{len(doc['nodes'])} nodes alive, {well}/{len(doc['instances'])} instances healthy"
    )


def _git(git: Mapping[str, Any]) -> Iterator[Finding]:
    tip = git["tip"][:8]
    if git["trouble"]:
        yield Finding("fail", "git", git["trouble"])
    if git["problems"]:
        first = git["problems"][0]
        text = f"commit {tip} is rejected: {first['file']}:{first['line']}:{first['column']} {first['code']} {first['message']}"
        yield Finding("fail", "git", text, f"tdie validate --rev {tip}")
    if back := git.get("rollback"):
        text = f"commit {back['to'][:8]} runs instead of the tip, rolled back by {back['who']}"
        yield Finding("warn", "git", text, "push a newer commit, or tdie rollback --cancel")
    if not (git["trouble"] or git["problems"] or git.get("rollback")):
        yield Finding("ok", "git", f"commit {git['commit'][:8] or 'none'} of {git['source']} is in force")


def _node(node: Mapping[str, Any], version: str) -> Iterator[Finding]:
    what = f"node {node['name']}"
    if node["presence"] != "alive":
        level: Level = "fail" if node["listed"] else "warn"
        yield Finding(level, what, f"{node['presence']}{': ' if node['detail'] else ''}{node['detail']}")
    if not node["listed"]:
        yield Finding("warn", what, "its agent is registered, but Git does not list it")
    if node["lockedBy"]:
        yield Finding("warn", what, f"locked by {node['lockedBy']}", f"tdie unlock node {node['name']}")
    if node["wish"]:
        yield Finding("warn", what, node["wish"], f"tdie uncordon {node['name']}")
    if node["version"] and node["version"] != version:
        yield Finding("warn", what, f"its agent is version {node['version']}, this is {version}")
    for problem in node["problems"]:
        yield Finding("warn", what, f"{problem['code']} {problem['detail']}")


def _waits(changes: list[Mapping[str, Any]]) -> Iterator[Finding]:
    reasons = Counter(change["hold"]["reason"] for change in changes if change["hold"] is not None)
    for reason, count in sorted(reasons.items()):
        many = f"{count} change{'' if count == 1 else 's'}"
        first = next(c["hold"]["detail"] for c in changes if c["hold"] is not None and c["hold"]["reason"] == reason)
        if reason in _ASKS:
            yield Finding("warn", "plan", f"{many} held {reason}: {first}", _ASKS[reason])
        elif reason in _STUCK:
            yield Finding("fail", "plan", f"{many} held {reason}: {first}", _STUCK[reason])


def of_disk(folder: str, total: int, free: int) -> Finding:
    """How full the disk of a folder is."""
    share = free / total if total else 0.0
    detail = f"{folder}: {share:.0%} of the disk is free"
    return (
        Finding("ok", "disk", detail)
        if share >= LEAST_FREE
        else Finding("warn", "disk", detail, "installs are refused")
    )


def worst_first(findings: Iterator[Finding] | list[Finding]) -> list[Finding]:
    """Failures, then warnings, then what is well; otherwise as found."""
    return sorted(findings, key=lambda finding: ("fail", "warn", "ok").index(finding.level))
