"""The Cluster document: the machines, and how the cluster behaves."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from reconciler.model.desired import Share
from reconciler.model.documents.base import Document, Metadata, Reference
from reconciler.model.units import Bytes, CountOrShare, Name, Rhythm, Seconds, shown
from reconciler.model.windows import check_schedule


def _window_length(seconds: float) -> float:
    if not 60 <= seconds <= 31 * 86400:
        raise ValueError("a window lasts from 1m to 31d")
    return seconds


def _prune(value: Any) -> str:
    if not isinstance(value, bool) and value != "all":
        raise ValueError(f"expected true, false or all, found {shown(value)}")
    return value if isinstance(value, str) else str(value).lower()


Prune = Annotated[
    Literal["true", "false", "all"],
    BeforeValidator(_prune),
    WithJsonSchema({"enum": [True, False, "all"], "default": True}),
]


class NodeCapacity(Document):
    """What the machine offers; not declared means not limited."""

    slots: Annotated[int, Field(ge=0)] | None = None
    """How many replicas fit."""
    cpu: Annotated[float, Field(ge=0)] | None = None
    """Cores."""
    memory: Bytes | None = None
    """Memory, e.g. `8Gi`."""


class Node(Document):
    """A machine the cluster may use; it is alive when its agent has registered."""

    name: Name
    """The name its agent registers with."""
    labels: dict[str, str] = {}
    """Facts to place by, e.g. `zone: a`."""
    capacity: NodeCapacity = NodeCapacity()
    """What fits on it."""
    cordoned: bool = False
    """True: nothing new is placed here."""
    address: str = ""
    """Checked against what the agent registered, when given."""
    api_uri: str = ""
    """Checked against what the agent registered, when given."""


class ClusterSource(Document):
    """What may be accepted from Git."""

    allow_force: bool = False
    """True: a rewritten history is followed without asking."""
    allow_empty: bool = False
    """True: a commit without any instance may stop everything."""
    package_hosts: list[str] = []
    """Hosts that packages may be fetched from, e.g. `packages.example.org`."""


class Window(Document):
    """A time at which commits may, or may not, be carried out. Healing never waits for it."""

    schedule: str
    """When it begins: minute hour day month weekday, e.g. `0 22 * * 1-5`."""
    duration: Annotated[Seconds, AfterValidator(_window_length)]
    """How long it lasts, e.g. `2h`."""
    time_zone: str = "UTC"
    """Of the schedule, e.g. `Europe/Berlin`."""
    kind: Literal["allow", "deny"] = "allow"
    """`deny` wins over `allow`; with any `allow`, everything outside is closed."""

    @model_validator(mode="after")
    def _comes(self) -> Window:
        check_schedule(self.schedule, self.time_zone)
        return self


class Sync(Document):
    """How commits are carried out."""

    mode: Literal["auto", "manual", "dry-run"] = "auto"
    """`manual` waits for `tdie apply`; `dry-run` only shows plans."""
    interval: Rhythm = 50.0
    """How often is looked when nothing wakes the controller."""
    self_heal: bool = True
    """False: what somebody stopped on its node stays stopped until `tdie apply` or another spec. Crashes restart anyway."""
    prune: Prune = "true"
    """Stop what left Git: true within maxPrune, false never, `all` without limit, and also what was started by hand."""
    max_prune: CountOrShare = Share(20, percent=True)
    """The most one commit may stop without confirmation."""
    windows: list[Window] = []
    """Times at which commits are carried out; none means always. `tdie apply` goes past them."""


class MassFailure(Document):
    """When so many nodes vanish at once, the fault is likely ours: nothing is moved."""

    fraction: Annotated[float, Field(ge=0, le=1)] = 0.34
    at_least: Annotated[int, Field(ge=1)] = 3


class Failover(Document):
    """When a silent node counts as lost."""

    lost_after: Seconds = 15.0
    """How long both witnesses must agree."""
    mass_failure: MassFailure = MassFailure()


class Leases(Document):
    """How leases are timed: a profile, and what is otherwise than in it. Unsafe figures are refused."""

    profile: Literal["default", "fast"] = "default"
    """`fast` notices sooner and tolerates shorter silences of Consul."""
    ttl: Seconds | None = None
    """T: a process is dead this long after the last renewal of its lease."""
    renew_every: Seconds | None = None
    http_timeout: Seconds | None = None
    """Of one renewal."""
    fence_grace: Seconds | None = None
    """From SIGTERM to SIGKILL."""
    kill_slack: Seconds | None = None
    """From SIGKILL to the deadline."""
    lock_delay: Annotated[Seconds, Field(le=60)] | None = None
    """D: nobody gets the lock of a session that ended sooner; at least ttl + killSlack."""


class Retention(Document):
    """What is kept."""

    package_versions: Annotated[int, Field(ge=1, le=100)] = 5
    """Versions of a package on each node, for rollback; the agents' own setting when not given."""
    history: Annotated[int, Field(ge=1, le=1000)] = 50
    """Commits remembered."""


class ClusterBody(Document):
    """The machines, and how the cluster behaves."""

    nodes: list[Node] = []
    packages: list[Reference] = []
    """On every node, even without an instance: `name@version`."""
    source: ClusterSource = ClusterSource()
    sync: Sync = Sync()
    failover: Failover = Failover()
    leases: Leases = Leases()
    retention: Retention = Retention()


class Cluster(Document):
    """The cluster: exactly one document of this kind."""

    api_version: Literal["tdie/v1"]
    kind: Literal["Cluster"]
    metadata: Metadata
    spec: ClusterBody
