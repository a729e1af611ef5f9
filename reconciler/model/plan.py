"""What should happen next, as data: changes, holds with their reasons, and the next assignments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from agent.clock import Monotonic
from agent.wire import PLAIN, NodePolicy, PackageOrder, ReplicaOrder


class Verdict(StrEnum):
    LEAVE = "leave"  # never act on what cannot be seen
    KEEP = "keep"
    START = "start"
    RECONFIGURE = "reconfigure"
    REPLACE = "replace"
    MOVE = "move"
    RENAME = "rename"
    STOP = "stop"


class Cause(StrEnum):
    COMMIT = "commit"
    DRIFT = "drift"
    NODE_LOST = "node-lost"
    NODE_JOINED = "node-joined"
    NODE_REMOVED = "node-removed"
    DRAIN = "drain"
    ROLLBACK = "rollback"
    LEASE = "lease"


class HoldReason(StrEnum):
    """Why a wanted change is not made yet. The value is the code people see."""

    NODE_SILENT = "NODE_SILENT"  # the node, or one that may still run the replica, does not answer
    NODE_FORGOTTEN = (
        "NODE_FORGOTTEN"  # Consul lost its data, and a node that may run the replica has not come back since
    )
    NODE_LOCKED = "NODE_LOCKED"  # somebody holds the node lock
    NO_PLACE = "NO_PLACE"  # no node passes the filters
    PACKAGE_FETCHING = "PACKAGE_FETCHING"  # a target node is still fetching the new package
    PACKAGE_FAILED = "PACKAGE_FAILED"  # a target node cannot install it
    PACKAGE_MISSING = "PACKAGE_MISSING"  # nobody can serve it
    TOO_FEW_LEFT = "TOO_FEW_LEFT"  # maxParallel replicas are away already
    ROLLOUT_PAUSED = "ROLLOUT_PAUSED"  # … or may be: their nodes do not answer
    SOAKING = "SOAKING"  # the last new replica is not healthy for minHealthyTime yet
    ROLLOUT_HALTED = "ROLLOUT_HALTED"  # a new replica missed healthyDeadline, or nothing moved for progressDeadline
    EARLIER_WAVE = "EARLIER_WAVE"
    DEPENDENCY = "DEPENDENCY"
    PRUNE_HELD = "PRUNE_HELD"  # too much would be stopped, or something protected
    PRUNE_OFF = "PRUNE_OFF"  # sync.prune: false
    SUSPENDED = "SUSPENDED"
    NOT_APPROVED = "NOT_APPROVED"  # sync.mode: manual
    DRY_RUN = "DRY_RUN"  # sync.mode: dry-run
    WINDOW_CLOSED = "WINDOW_CLOSED"  # sync.windows
    SELF_HEAL_OFF = "SELF_HEAL_OFF"  # sync.selfHeal: false, and somebody stopped it
    IN_FLIGHT = "IN_FLIGHT"  # sent to the node; its report does not show it yet
    WAITING_LEASE = "WAITING_LEASE"  # its node waits for its lease, or cannot have one now
    CANARY = "CANARY"  # canaries run the new spec first
    CANARY_WAITS = "CANARY_WAITS"  # the canaries are healthy; a person must say that the others may follow
    REBALANCING = "REBALANCING"  # moves that make the fleet more even go one at a time, after everything else
    TARGET_STARTING = "TARGET_STARTING"  # a moved replica is not healthy at its new node yet
    HANDING_OVER = "HANDING_OVER"  # one of the two nodes hands over another leased replica first
    MASS_FAILURE_HOLD = "MASS_FAILURE_HOLD"  # so many nodes vanished at once that nothing is moved


@dataclass(frozen=True, slots=True)
class Change:
    """A difference to act on. `id` is stable while the difference is the same."""

    id: str  # 12 hex digits over replica, verdict, hashes, nodes, cause, commit
    replica: str
    instance: str
    verdict: Verdict
    cause: Cause
    commit: str
    node: str  # where it happens; the target of a MOVE; "" when no node was found
    from_node: str = ""  # MOVE only
    from_hash: str = ""
    to_hash: str = ""
    from_package: str = ""  # name@version
    to_package: str = ""
    from_replica: str = ""  # its name so far, if that was another one
    reason: str = ""  # for people: "package 1.0.0 → 1.1.0", "filter: *.xml → *.csv", "no longer in Git"
    wave: int = 0  # position in the order of waves, from 0


@dataclass(frozen=True, slots=True)
class Hold:
    """A change the planner wants but does not make yet."""

    change: str  # Change.id
    replica: str
    instance: str
    reason: HoldReason
    detail: str  # one sentence for people
    waiting_on: tuple[str, ...] = ()  # nodes, replicas, instances, lock holders that can be looked up
    until: Monotonic | None = None  # when time alone ends it


@dataclass(frozen=True, slots=True)
class NodeTarget:
    """What a node's next assignment holds; execution numbers it and adds where packages come from."""

    node: str
    packages: tuple[PackageOrder, ...]
    replicas: tuple[ReplicaOrder, ...]
    digest: str  # agent.wire.content_digest
    policy: NodePolicy = PLAIN
    after: tuple[str, ...] = ()  # nodes that must have theirs first: they take over what this one gives up


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole set of changes of all waves, the holds, and what goes out now."""

    commit: str
    changes: tuple[Change, ...]  # in the order in which people read and waves run
    holds: tuple[Hold, ...]
    targets: Mapping[str, NodeTarget]  # only nodes whose assignment changes now, by name
    look_again_at: Monotonic | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # what could be better and is left as it is
    digest: str = ""  # 16 hex digits over the change ids
    prune_digest: str = ""  # the same over the stops of what left Git: confirms them while other changes go on
    lost_digest: str = ""  # of nodes that were lost together: confirms that their replicas may be moved
    stable: Mapping[str, str] = field(default_factory=dict)  # instance → specHash seen to run well, to be remembered
    failed: Mapping[str, str] = field(default_factory=dict)  # instance with autoRevert whose rollout has failed → why
    rolled_back: bool = False  # an earlier commit is in force than the tip of the branch
    healthy: bool = False  # nothing is left to do and every replica is well

    def counts(self) -> Counter[Verdict]:
        """How many changes of each verdict."""
        return Counter(change.verdict for change in self.changes)
