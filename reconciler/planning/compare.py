"""Wanted against assigned, and assigned against reported: ordered rules, first match wins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent.wire import LeaseStatus, ReplicaOrder, ReplicaSpec, ReplicaState
from reconciler.model.desired import InstanceSpec
from reconciler.model.observed import NodeView
from reconciler.model.plan import Verdict
from reconciler.planning.fleet import Sighting


@dataclass(frozen=True, slots=True)
class Pair:
    """One replica as it is wanted and as its node was told to run it."""

    replica: str
    wanted: InstanceSpec | None
    entry: ReplicaOrder | None
    silent: bool = False  # the node does not answer
    must_leave: str = ""  # why the replica cannot stay at its node
    barred: bool = False  # it waits there for a lease that the node may not have


@dataclass(frozen=True, slots=True)
class Rule:
    verdict: Verdict
    applies: Callable[[Pair], bool]
    because: str


RULES: tuple[Rule, ...] = (
    Rule(Verdict.LEAVE, lambda p: p.silent, "never act on what cannot be seen"),
    Rule(Verdict.KEEP, lambda p: p.wanted is None and p.entry is None, "nothing wanted, nothing there"),
    Rule(Verdict.STOP, lambda p: p.wanted is None, "nothing in Git asks for it"),
    Rule(Verdict.START, lambda p: p.entry is None, "its node was never told to run it"),
    Rule(
        Verdict.RENAME,
        lambda p: bool(p.must_leave) and _changes_lease(p) and not p.barred,
        "its lease goes with the process, then both go",
    ),
    Rule(Verdict.MOVE, lambda p: bool(p.must_leave), "its node does not pass the filters any more"),
    Rule(Verdict.RENAME, lambda p: _entry(p).replica != p.replica, "the same process under another name"),
    Rule(Verdict.KEEP, lambda p: _entry(p).spec_hash == _wanted(p).spec_hash, "the same process would do"),
    Rule(Verdict.RECONFIGURE, lambda p: only_settings_differ(_wanted(p), _entry(p).spec), "new settings, same host"),
    Rule(Verdict.REPLACE, lambda p: True, "another process is wanted"),
)


def compare(pair: Pair) -> Rule:
    """The first rule that applies."""
    return next(rule for rule in RULES if rule.applies(pair))


def only_settings_differ(wanted: InstanceSpec, held: ReplicaSpec) -> bool:
    """Whether a running host can take the new spec over: same code, environment and bounds, and it speaks Python."""
    spec = wanted.spec
    new, old = spec.publisher, held.publisher
    return (
        wanted.runtime == "python"
        and spec.package == held.package
        and dict(spec.env) == dict(held.env)
        and spec.resources == held.resources
        and (new is None) == (old is None)
        and (new is None or old is None or new.package == old.package)
    )


@dataclass(frozen=True, slots=True)
class Astray:
    """A node was told what is wanted, and its report does not show it."""

    verdict: Verdict
    drift: bool  # it once did, or had time to
    why: str
    given_up: bool = False  # the node waits for a new spec
    lease: LeaseStatus | None = None  # the one that it waits for


def astray(sighting: Sighting, node: NodeView) -> Astray | None:
    """How a report differs for good from the entry it answers to; None while it shows it, healthy or not."""
    entry, row = sighting.entry, sighting.row
    assignment = node.assignment
    if entry is None or assignment is None:
        return None
    fresh = not node.confirmed or entry.ordered >= assignment.number
    if row is None:
        return Astray(Verdict.START, not fresh, "ordered" if fresh else "missing on its node")
    if row.replica != entry.replica:
        return Astray(Verdict.RENAME, False, f"renamed from {row.replica}")
    if row.spec_hash != entry.spec_hash:
        same_code = row.package == entry.spec.package
        why = "settings" if same_code else f"package {row.package.version} → {entry.spec.package.version}"
        return Astray(Verdict.RECONFIGURE if same_code else Verdict.REPLACE, False, why)
    if row.lease is not None and row.lease.missing and row.state in (ReplicaState.PENDING, ReplicaState.STOPPED):
        return Astray(Verdict.START, False, "ordered", lease=row.lease)
    if row.state is ReplicaState.PENDING:
        return Astray(Verdict.START, False, "its package is being installed")
    if row.state is ReplicaState.STOPPED:
        return Astray(Verdict.START, True, "stopped on its node")
    if row.state is ReplicaState.FAILED:
        return Astray(Verdict.START, True, f"failed: {row.last_error or 'no reason given'}", given_up=True)
    return None


def _wanted(pair: Pair) -> InstanceSpec:
    if pair.wanted is None:
        raise ValueError(f"{pair.replica}: the rules above have seen to it that something is wanted")
    return pair.wanted


def _changes_lease(pair: Pair) -> bool:
    """Whether it is under a lease and goes on under another one: two nodes that held one each would both run it."""
    entry = _entry(pair)
    return entry.replica != pair.replica and "none" not in (entry.policy.lease, _wanted(pair).policy.lease)


def _entry(pair: Pair) -> ReplicaOrder:
    if pair.entry is None:
        raise ValueError(f"{pair.replica}: the rules above have seen to it that something is there")
    return pair.entry
