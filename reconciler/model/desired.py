"""What a commit asks for: validated, resolved, every package pinned to its digest, every spec hashed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from agent.wire import USUAL_LEASES, Capacity, LeaseFigures, PackageRef, ReplicaPolicy, ReplicaSpec
from reconciler.model.windows import SyncWindow


@dataclass(frozen=True, slots=True)
class Place:
    """Where in Git something was written."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """A machine the cluster may use."""

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    capacity: Capacity = Capacity()
    cordoned: bool = False
    address: str = ""
    api_uri: str = ""


@dataclass(frozen=True, slots=True)
class Share:
    """A count, or a percentage of one."""

    value: int
    percent: bool = False

    def of(self, total: int) -> int:
        """The count this means; a percentage rounds down but is at least 1 (0 % is 0)."""
        if not self.percent:
            return self.value
        return max(1, total * self.value // 100) if self.value else 0

    def __str__(self) -> str:
        return f"{self.value}%" if self.percent else str(self.value)


@dataclass(frozen=True, slots=True)
class Placement:
    where: str = ""  # checked by model.where; empty matches every node
    prefer: tuple[str, ...] = ()  # expressions; more matches score better
    spread: str = ""  # label whose values replicas are spread over; `node` spreads over nodes
    strategy: Literal["evenness", "least-loaded", "pack"] = "least-loaded"
    max_per_node: int | None = None
    rebalance: Literal["never", "gradual"] = "never"  # whether replicas move to a node that has more room


@dataclass(frozen=True, slots=True)
class UpdatePolicy:
    """How a changed spec reaches the replicas. Seconds."""

    max_parallel: Share = Share(1)
    min_healthy_time: float = 10.0
    healthy_deadline: float = 300.0
    progress_deadline: float = 600.0
    canary: int = 0
    auto_revert: bool = False

    @property
    def tracked(self) -> bool:
        """Whether it must be remembered which spec ran well last."""
        return self.auto_revert or self.canary > 0


@dataclass(frozen=True, slots=True)
class Dependency:
    instance: str
    condition: Literal["healthy", "started"] = "healthy"


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """One instance, resolved. Exactly one of `replicas` and `per_node` is given."""

    name: str
    spec: ReplicaSpec
    spec_hash: str  # spec.hash()
    runtime: Literal["python", "exec"] = "python"
    replicas: int | None = None
    per_node: int | None = None
    policy: ReplicaPolicy = ReplicaPolicy()
    placement: Placement = Placement()
    update: UpdatePolicy = UpdatePolicy()
    depends_on: tuple[Dependency, ...] = ()
    wave: int = 0
    suspend: bool = False
    protected: bool = False
    moved_from: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    place: Place = Place("", 0, 0)


@dataclass(frozen=True, slots=True)
class SyncPolicy:
    mode: Literal["auto", "manual", "dry-run"] = "auto"
    interval: float = 50.0
    self_heal: bool = True
    prune: Literal["true", "false", "all"] = "true"
    max_prune: Share = Share(20, percent=True)
    windows: tuple[SyncWindow, ...] = ()


@dataclass(frozen=True, slots=True)
class FailoverPolicy:
    lost_after: float = 15.0
    mass_fraction: float = 0.34
    mass_at_least: int = 3


@dataclass(frozen=True, slots=True)
class SourcePolicy:
    allow_force: bool = False
    allow_empty: bool = False
    package_hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ClusterSpec:
    name: str
    nodes: Mapping[str, NodeSpec]
    packages: tuple[PackageRef, ...] = ()  # on every node, even without an instance
    source: SourcePolicy = SourcePolicy()
    sync: SyncPolicy = SyncPolicy()
    failover: FailoverPolicy = FailoverPolicy()
    leases: LeaseFigures = USUAL_LEASES
    retain_versions: int | None = None  # of each package; None leaves it to the agents' own settings
    retain_history: int = 50


@dataclass(frozen=True, slots=True)
class DesiredState:
    """Everything one commit asks for. Instances that a commit left alone are the same objects as before it."""

    commit: str  # 40 hex digits, or a name for people when it does not come from Git
    cluster: ClusterSpec
    instances: Mapping[str, InstanceSpec]  # by name, in name order
    subject: str = ""  # first line of the commit message
    author: str = ""
