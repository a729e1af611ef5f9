"""PUBLIC: what controller and agent say to each other. Assignments go down, Reports come up.

Field names travel in camelCase. An Assignment with a field this agent does not know is refused (VERSION_SKEW) because obeying
half of it could be wrong; a Report with unknown fields is read without them because observing less is harmless.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

WIRE_VERSION = 1


class Wire(BaseModel):
    """Base of everything a controller sends: frozen, strict about unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


SKEWED = frozenset(
    {"extra_forbidden", "literal_error", "enum"}
)  # what pydantic calls a field or choice of a newer version


class Told(BaseModel):
    """Base of everything an agent tells: frozen, tolerant of fields that a newer agent adds."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)


def canonical_json(value: Any) -> bytes:
    """The same bytes for equal values, whatever the order of keys."""
    return _ENCODER.encode(value).encode()


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest_of(value: Any) -> str:
    """Hex sha256 of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


# ---------------------------------------------------------------------------------------------- what should run


class PackageRef(Wire):
    """Exactly these bytes: a name and version for people, a content digest (64 hex digits) for programs."""

    name: str
    version: str
    digest: str

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


class PackageOrder(Wire):
    """A package to have installed, and URLs that serve it, best first."""

    package: PackageRef
    sources: tuple[str, ...] = ()


class PublisherSpec(Wire):
    """The way a replica's messages leave it."""

    package: PackageRef
    settings: Mapping[str, Any] = Field(default_factory=dict)


class SubscriptionSpec(Wire):
    """Messages a replica gets: those of a topic, and with `type` only those of this type."""

    topic: str
    type: str = ""


class Resources(Wire):
    """Upper bounds of one replica: cores, and bytes of memory. None is unbounded."""

    cpu: float | None = None
    memory: int | None = None


class ReplicaSpec(Wire):
    """Everything that decides a running process, and nothing else: its hash tells whether a process must change."""

    package: PackageRef
    settings: Mapping[str, Any] = Field(default_factory=dict)
    env: Mapping[str, str] = Field(default_factory=dict)
    publisher: PublisherSpec | None = None
    resources: Resources = Resources()
    # left out when empty: specs without subscriptions keep their hash, and older agents understand them
    subscribe: tuple[SubscriptionSpec, ...] = Field(default=(), exclude_if=lambda subscribed: not subscribed)

    def hash(self) -> str:
        """Hex sha256 over the canonical form; equal hashes mean the same process would do."""
        return digest_of(self.model_dump(mode="json", by_alias=True))


class RestartPolicy(Wire):
    """How a crashed host comes back: the first restart at once, later ones after `delay`, `attempts` within `interval`.

    `mode` says what happens then: `fail` gives up (state Failed), `delay` waits for the interval to pass. Seconds.
    """

    attempts: int = 2
    interval: float = 1800.0
    delay: float = 15.0
    mode: Literal["fail", "delay"] = "fail"


class HealthCheck(Wire):
    """A probe beyond the host's own state. `kind` none: healthy is Started and the component's own state; `component`: the
    host asks the component's `check`."""

    kind: Literal["none", "http", "tcp", "exec", "component"] = "none"
    target: str = ""  # URL path or URL, port, or command line
    interval: float = 10.0
    timeout: float = 2.0

    @property
    def of_component(self) -> tuple[float, float]:
        """Interval and timeout in which a host asks its component; zeros when it is not to ask."""
        return (self.interval, self.timeout) if self.kind == "component" else (0.0, 0.0)


class ReplicaPolicy(Wire):
    """How a replica is looked after; changing it restarts nothing."""

    restart: RestartPolicy = RestartPolicy()
    health: HealthCheck = HealthCheck()
    ports: tuple[int, ...] = ()
    stop_grace: float = 10.0
    protected: bool = False  # read back from here when the document is gone
    heal: bool = True  # start it again when somebody stopped it on its node
    lease: Literal["none", "strict", "failsafe"] = "none"  # at most one process anywhere


class ReplicaOrder(Wire):
    """One replica that this node should run."""

    replica: str
    instance: str
    spec: ReplicaSpec
    spec_hash: str
    policy: ReplicaPolicy = ReplicaPolicy()
    commit: str = ""  # the commit that brought this spec here; keeps its value while the spec stays
    ordered: tuple[int, int] = (0, 0)  # (epoch, generation) in which it was first ordered here: the later of two wins
    placed: str = ""  # the situation (commit, open nodes) in which this node was chosen; kept while it stays here
    renamed_from: str | None = None  # take over this replica's process instead of starting one


class LeaseFigures(Wire):
    """How leases are timed. A process is dead `ttl` after the last renewal of its lease was sent; seconds."""

    ttl: float = 30.0  # T: Consul ends a session that was not renewed for this long, or later
    renew_every: float = 5.0
    http_timeout: float = 2.0  # of one renewal
    fence_grace: float = 5.0  # from SIGTERM to SIGKILL
    kill_slack: float = 2.0  # from SIGKILL to the deadline
    lock_delay: float = 40.0  # D: nobody gets the lock of a session that ended sooner

    def fault(self) -> str:
        """Why two processes could run at once under these figures, or one could not keep its lease; empty if they are safe."""
        notice = self.renew_every + self.http_timeout + self.fence_grace + self.kill_slack
        noticed = f"renewEvery + httpTimeout + fenceGrace + killSlack = {notice:g}s must be less than"
        if self.ttl + self.kill_slack > self.lock_delay:
            return f"ttl {self.ttl:g}s + killSlack {self.kill_slack:g}s must not exceed lockDelay {self.lock_delay:g}s"
        if notice >= self.lock_delay:
            return f"{noticed} lockDelay {self.lock_delay:g}s"
        if notice >= self.ttl:
            return f"{noticed} ttl {self.ttl:g}s"
        return ""


USUAL_LEASES = LeaseFigures()
FAST_LEASES = LeaseFigures(ttl=15.0, renew_every=3.0, fence_grace=3.0, kill_slack=1.0, lock_delay=20.0)


def _is_usual(figures: LeaseFigures) -> bool:
    return figures == USUAL_LEASES


class NodePolicy(Wire):
    """How a node keeps house, from the Cluster document. None leaves it to the agent's own settings."""

    keep_versions: int | None = None  # of each package, for rollback
    stop_manual: bool = False  # what was started by hand is not owned by Git, and does not stay
    leases: LeaseFigures = Field(default=USUAL_LEASES, exclude_if=_is_usual)  # left out when usual: for older agents


PLAIN = NodePolicy()


def _is_default(policy: NodePolicy) -> bool:
    return policy == PLAIN


class Assignment(Wire):
    """The complete, numbered list of what one node should have installed and running."""

    wire: Literal[1] = 1
    cluster: str
    node: str
    epoch: int
    generation: int
    commit: str = ""
    packages: tuple[PackageOrder, ...] = ()  # sorted by name, version, digest
    replicas: tuple[ReplicaOrder, ...] = ()  # sorted by replica
    policy: NodePolicy = Field(default=PLAIN, exclude_if=_is_default)  # left out when default: for older agents
    digest: str  # content_digest(packages, replicas, policy)

    @property
    def number(self) -> tuple[int, int]:
        """What orders assignments of one node: epoch first, then generation."""
        return (self.epoch, self.generation)


def content_digest(
    packages: Iterable[PackageOrder], replicas: Iterable[ReplicaOrder], policy: NodePolicy = PLAIN
) -> str:
    """Hex sha256 of what a node should have; where packages come from does not count."""
    return digest_of_content((package_text(order.package) for order in packages), map(replica_text, replicas), policy)


def has_its_digest(assignment: Assignment) -> bool:
    """Whether the digest fits the content: as this version writes it, or as its sender wrote it (without newer fields)."""
    if assignment.digest == content_digest(assignment.packages, assignment.replicas, assignment.policy):
        return True
    raw = assignment.model_dump(mode="json", by_alias=True, exclude_unset=True)
    packages = [order["package"] for order in raw.get("packages", [])]
    return assignment.digest == digest_of({"packages": packages, "replicas": raw.get("replicas", [])})


@lru_cache(maxsize=4096)
def package_text(package: PackageRef) -> bytes:
    """What counts of a package order, as canonical JSON."""
    return canonical_json(package.model_dump(mode="json", by_alias=True))


def replica_text(order: ReplicaOrder) -> bytes:
    """The order as canonical JSON."""
    return canonical_json(order.model_dump(mode="json", by_alias=True))


def digest_of_content(packages: Iterable[bytes], replicas: Iterable[bytes], policy: NodePolicy = PLAIN) -> str:
    """The content digest of orders that are canonical JSON already: that of one object with both as lists, and the policy
    if it is not the default."""
    ruled = (
        b"" if _is_default(policy) else b',"policy":%b' % canonical_json(policy.model_dump(mode="json", by_alias=True))
    )
    whole = b'{"packages":[%b]%b,"replicas":[%b]}' % (b",".join(packages), ruled, b",".join(replicas))
    return hashlib.sha256(whole).hexdigest()


# ---------------------------------------------------------------------------------------------- what is true there


class ReplicaState(StrEnum):
    """Where a replica is on its node. Only Started can be healthy."""

    PENDING = "Pending"  # ordered; its package is not installed yet
    STARTING = "Starting"
    STARTED = "Started"
    STOPPING = "Stopping"
    STOPPED = "Stopped"  # stopped by hand or exited by itself with status 0
    BACKOFF = "Backoff"  # crashed; waits for its next restart
    FAILED = "Failed"  # crashed too often, or cannot start; waits for a new spec


KEPT_BY_AGREEMENT = "FAILSAFE"
NOT_ELIGIBLE = "NOT_ELIGIBLE"  # the last holder did not know of this node
NOT_AGREED = "NOT_AGREED"  # nobody knows who ran it last, and not all say that nobody does


class LeaseStatus(Told):
    """Where a node is with the lease of one replica.

    `waiting`: nothing of it runs here; `code` says for what it waits, `holder` who has it, `until` when time alone ends that (boot
    clock); with the code NOT_ELIGIBLE `holder` are the nodes that may have it, with NOT_AGREED those that did not agree. `held`:
    it may run; with the code FAILSAFE without Consul, as long as the nodes in `holder` agree. `ending`: it must not run any more,
    and something of it may be left. `fenced`: nothing of it is left, and the node cannot get the lease now.
    """

    state: Literal["waiting", "held", "ending", "fenced"]
    code: str = ""
    holder: str = ""
    until: float | None = None
    token: str = ""  # while held: epoch.index, which only grows from holder to holder

    @property
    def missing(self) -> bool:
        """Whether the replica may not run on this node now."""
        return self.state != "held"

    @property
    def number(self) -> tuple[int, int] | None:
        """The token, to be compared: who has the highest is the last holder. None without one."""
        epoch, _, index = self.token.partition(".")
        return (int(epoch), int(index)) if epoch.isdigit() and index.isdigit() else None

    @property
    def eligible(self) -> tuple[str, ...]:
        """The nodes that may have the lease, when this one may not; else none."""
        barred = self.missing and self.code == NOT_ELIGIBLE and self.holder
        return tuple(self.holder.split(", ")) if barred else ()

    def __str__(self) -> str:
        """For people; nothing in it changes by itself."""
        match self.state:
            case "held" if self.code == KEPT_BY_AGREEMENT:
                nodes = self.holder.count(",") + 1
                return f"FAILSAFE, Consul is away; kept running by agreement of {nodes} nodes ({self.holder})"
            case "held":
                return f"holds its lease ({self.token})" if self.token else "takes its lease up again"
            case "waiting" if self.code == NOT_ELIGIBLE:
                return f"may not have its lease, its last holder may be alive and knows only of {self.holder} (NOT_ELIGIBLE)"
            case "waiting" if self.code == NOT_AGREED:
                return (
                    f"waits for its lease: who ran it last is not known, and {self.holder} did not agree (NOT_AGREED)"
                )
            case "waiting" if self.holder:
                return f"waits for its lease, held by {self.holder}"
            case "waiting":
                return f"waits for its lease ({self.code})"
            case "ending":
                return f"lost its lease ({self.code}) and is being ended"
            case "fenced":
                return f"FENCED, without a lease ({self.code}) and nothing of it is left"


class ReplicaStatus(Told):
    """One replica as its node sees it. Times are seconds on the node's boot clock."""

    replica: str
    instance: str
    spec_hash: str
    package: PackageRef
    state: ReplicaState
    healthy: bool = False
    since: float = 0.0  # when `state` or `healthy` last changed
    started_at: str = ""  # ISO 8601 time of day of the last start, for people
    pid: int | None = None
    port: int | None = None
    restarts: int = 0
    last_error: str = ""
    retry_at: float | None = None  # when a Backoff ends
    commit: str = ""
    ordered_hash: str = ""  # what is ordered, which may not be what runs yet
    ordered_since: float = 0.0  # when that was first accepted here
    lease: LeaseStatus | None = None  # None: it needs none
    index: int = 0  # the report index at which this row last changed


class PackageStatus(Told):
    """One package on a node: installed, being fetched, or why not."""

    package: PackageRef
    state: Literal["Installed", "Fetching", "Failed"]
    error: str = ""
    used: bool = True
    manual: bool = False  # uploaded at the node by hand, and nothing in Git names it


class NodeProblem(Told):
    """Something an operator of this node should know: typed, deduplicated, gone when healed."""

    code: str
    detail: str


class Capacity(Told):
    """What a node offers. None means not declared."""

    slots: int | None = None
    cpu: float | None = None
    memory: int | None = None


class Accepted(Told):
    """The assignment a node has taken over: written to disk before it is echoed."""

    epoch: int
    generation: int
    digest: str


class Report(Told):
    """What a node says is true there: state transitions only, with an index that only grows.

    Asked with an index, it holds the rows that changed since (`base` = that index, `removed` = rows gone since); asked with 0,
    or after the agent restarted, all rows (`base` 0). `at` is the node's boot clock when it was sent, so a reader can turn
    `since` into an age.
    """

    wire: int = WIRE_VERSION
    cluster: str
    node: str
    agent: str  # changes each time the agent starts; an index is only comparable within one
    boot_id: str
    index: int
    base: int = 0
    at: float
    epoch: int  # the highest epoch that has claimed this node
    accepted: Accepted | None = None
    settled: bool = False  # nothing left to do for the accepted assignment
    labels: Mapping[str, str] = Field(default_factory=dict)
    capacity: Capacity = Capacity()
    version: str = ""
    packages: tuple[PackageStatus, ...] = ()
    replicas: tuple[ReplicaStatus, ...] = ()
    removed: tuple[str, ...] = ()
    by_hand: tuple[ReplicaStatus, ...] = ()  # always all of them: processes that were started at the node, not by Git
    problems: tuple[NodeProblem, ...] = ()


class Claim(Wire):
    """A controller takes charge of a node with its epoch."""

    epoch: int


class Claimed(Told):
    """The answer to a claim: the whole report, and the assignment in force, so that a new leader plans from facts."""

    report: Report
    assignment: Assignment | None = None
