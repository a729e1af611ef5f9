"""The fleet as last seen: possibly late, possibly incomplete, and saying so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from agent.clock import Monotonic
from agent.wire import Accepted, Assignment, Capacity, LeaseStatus, NodeProblem, PackageRef, ReplicaState


class Presence(StrEnum):
    """What is known of a node. Only ALIVE nodes are given work; only LOST ones have it taken away."""

    ALIVE = "alive"  # claimed by this leader, and its long poll answers
    JOINING = "joining"  # registered, not claimed yet
    UNREACHABLE = "unreachable"  # one witness is missing, or both for less than `lostAfter`: nothing is concluded
    LOST = "lost"  # both witnesses (Consul, long poll) agree for `lostAfter`
    ABSENT = "absent"  # listed in Git, but no agent of that name ever joined: nothing can run there


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One replica as its node reported it; `since` is on the controller's clock."""

    replica: str
    instance: str
    spec_hash: str
    package: PackageRef
    state: ReplicaState
    healthy: bool
    since: Monotonic  # when state or healthy last changed
    restarts: int = 0
    pid: int | None = None
    port: int | None = None
    last_error: str = ""
    lease: LeaseStatus | None = None  # `until` is on the controller's clock; None: it needs none
    started_at: str = ""
    commit: str = ""
    ordered_hash: str = ""  # the spec its node has accepted for it, which may not be what runs yet
    ordered_since: Monotonic = Monotonic(0.0)


@dataclass(frozen=True, slots=True)
class NodeWish:
    """What a person wants of a node besides what Git says: nothing new there (cordon), or nothing there at all (drain).

    After `deadline` what is left is stopped even if it has no other place or too few of it would be left.
    """

    who: str
    why: str = ""
    since: str = ""  # ISO 8601, for people
    drain: bool = False
    deadline: Monotonic | None = None

    def __str__(self) -> str:
        return f"{'drained' if self.drain else 'cordoned'} by {self.who}" + (f": {self.why}" if self.why else "")


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node. `assignment` is what this leader sent last, else what the node had in force when it was claimed.

    A replica whose entry in `assignment` differs from its reported row (or has none) is on its way and counts as unavailable.
    """

    name: str
    presence: Presence
    since: Monotonic = Monotonic(0.0)  # of the presence
    detail: str = ""  # why it is not alive, for people
    vanishing: bool = False  # both witnesses miss it: it is lost if that lasts
    assignment: Assignment | None = None
    accepted: Accepted | None = None  # echoed by the agent after it was written to disk
    next_generation: int = 1
    replicas: Mapping[str, ReplicaView] = field(default_factory=dict)
    installed: frozenset[str] = frozenset()  # package digests
    package_errors: Mapping[str, str] = field(default_factory=dict)  # digest -> why it is not installed
    labels: Mapping[str, str] = field(default_factory=dict)  # as registered; Git's labels go over them
    capacity: Capacity = Capacity()  # as registered; Git's declaration goes over it
    # Of a node never heard of: replicas that Consul shows there, all that it may run; None: not known.
    may_run: frozenset[str] | None = None
    last_shown: frozenset[str] | None = None  # … and those of one that Consul misses: it may run others since
    # Of a node that came back without its orders: replicas that ran there well, when this leader heard of them last.
    ran: frozenset[str] = frozenset()
    locked_by: str = ""  # who holds the node lock to say "not now", with the reason
    wish: NodeWish | None = None
    problems: tuple[NodeProblem, ...] = ()
    by_hand: frozenset[str] = frozenset()  # replicas that people have started there
    manual: tuple[str, ...] = ()  # what was started or uploaded there by hand and is not owned by Git, for people
    api: str = ""
    version: str = ""

    @property
    def shown(self) -> frozenset[str]:
        """The replicas that Consul shows on a node never heard of, or did when it missed it: those at least it may run."""
        return (self.may_run if self.may_run is not None else self.last_shown) or frozenset()

    @property
    def confirmed(self) -> bool:
        """Whether the node has said that it has what it was sent last."""
        held, accepted = self.assignment, self.accepted
        return held is None or (accepted is not None and (accepted.epoch, accepted.generation) >= held.number)

    @property
    def surprising(self) -> bool:
        """Whether the node says that it has something else than anything it was sent as far as is known here."""
        held, accepted = self.assignment, self.accepted
        if accepted is None or held is None:
            return accepted is not None
        number = (accepted.epoch, accepted.generation)
        return number > held.number or (number == held.number and accepted.digest != held.digest)


@dataclass(frozen=True, slots=True)
class ObservedState:
    """All nodes known from Git or Consul, under one leadership."""

    epoch: int
    nodes: Mapping[str, NodeView]
    warnings: tuple[str, ...] = ()  # foreign services of an instance's name, agents not listed in Git, …


@dataclass(frozen=True, slots=True)
class Window:
    """Whether this is a time at which commits may be carried out, and when that ends."""

    open: bool = True
    detail: str = ""
    until: Monotonic | None = None


@dataclass(frozen=True, slots=True)
class Confirmed:
    """What a person confirmed, by its digest, and when."""

    digest: str = ""
    at: Monotonic = Monotonic(0.0)


@dataclass(frozen=True, slots=True)
class Record:
    """What planning must know besides desired state and fleet: what the controllers remember in Consul, and the hour."""

    approved: frozenset[str] = frozenset()  # change ids a person has approved (`tdie apply`)
    confirmed_prune: str = ""  # plan digest for which a person confirmed stops beyond the limit
    confirmed_lost: Confirmed = Confirmed()  # by a person: that nodes which were lost together are gone
    window: Window = Window()
    suspended: Mapping[str, str] = field(default_factory=dict)  # instance ("": all) → who suspended it, and why
    stable: Mapping[str, str] = field(
        default_factory=dict
    )  # instance → specHash that ran well on all its replicas last
    promoted: Mapping[str, str] = field(default_factory=dict)  # instance → specHash that may go past its canaries
    rewound: bool = False  # Consul has lost data, and not every listed node has told since what it runs
    rolled_back: bool = False  # an earlier commit is in force than the tip of the branch
