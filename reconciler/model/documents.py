"""The three documents people write: Cluster, Package and Instance. Docstrings and descriptions are what editors show."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel

from agent.packages.manifest import is_version
from reconciler.model import where
from reconciler.model.desired import Share
from reconciler.model.units import Bytes, CountOrShare, Name, Rhythm, Seconds, shown
from reconciler.model.versions import split_reference
from reconciler.model.windows import check_schedule

API_VERSION = "tdie/v1"
RESERVED_ENV = "TDIE_"


class Document(BaseModel):
    """Base of everything people write: unknown fields and wrong types are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        alias_generator=to_camel,
        populate_by_name=False,
        use_attribute_docstrings=True,
    )


def _reference(text: str) -> str:
    split_reference(text)
    return text


def _expression(text: str) -> str:
    where.parse(text)
    return text


def _window_length(seconds: float) -> float:
    if not 60 <= seconds <= 31 * 86400:
        raise ValueError("a window lasts from 1m to 31d")
    return seconds


def _prune(value: Any) -> str:
    if not isinstance(value, bool) and value != "all":
        raise ValueError(f"expected true, false or all, found {shown(value)}")
    return value if isinstance(value, str) else str(value).lower()


def _topic(topic: str) -> str:
    if not 1 <= len(topic) <= 200 or not topic.isprintable() or any(char.isspace() for char in topic):
        raise ValueError(f"expected a topic, up to 200 characters without spaces, found {shown(topic)}")
    return topic


def _instance_name(name: str) -> str:
    if name == "consul" or name.startswith("tdie-"):
        raise ValueError(f"'{name}' is reserved for services of the system itself")
    return name


Reference = Annotated[
    str,
    AfterValidator(_reference),
    WithJsonSchema(
        {"type": "string", "pattern": "^[a-z0-9-]{1,63}@.+$", "examples": ["file-watcher@1.0.0", "web@^1.2"]}
    ),
]
Expression = Annotated[str, AfterValidator(_expression), Field(examples=["zone == 'a' and disk in ['ssd', 'nvme']"])]
Prune = Annotated[
    Literal["true", "false", "all"],
    BeforeValidator(_prune),
    WithJsonSchema({"enum": [True, False, "all"], "default": True}),
]
Port = Annotated[int, Field(ge=1, le=65535)]
Topic = Annotated[
    str,
    AfterValidator(_topic),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^\\S+$", "examples": ["files"]}),
]
Settings = dict[str, Any]


class Metadata(Document):
    """What the document is called."""

    name: Name
    """Up to 63 of a-z, 0-9 and '-'."""
    labels: dict[str, str] = {}
    """Short facts to select by."""
    annotations: dict[str, str] = {}
    """Anything else worth noting; the system does not read it."""


class InstanceMetadata(Metadata):
    """What the instance is called; also its service name in Consul."""

    name: Annotated[Name, AfterValidator(_instance_name)]
    """Up to 63 of a-z, 0-9 and '-'; not `consul`, not starting with `tdie-`."""


# ---------------------------------------------------------------------------------------------------- Cluster


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


# ---------------------------------------------------------------------------------------------------- Package


class PackageSource(Document):
    """Where the package comes from: exactly one of path, builtin, url (with sha256), digest."""

    path: str | None = None
    """A folder of this repository with a manifest.json."""
    builtin: Name | None = None
    """A package that ships with the program."""
    url: str | None = None
    """A zip: http(s) from an allowed host, file:// or an absolute path."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """Of the zip at `url`, 64 hex digits."""
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """An uploaded package: the 64 hex digits that `tdie package push` printed."""

    @model_validator(mode="after")
    def _one(self) -> PackageSource:
        given = [name for name in ("path", "builtin", "url", "digest") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ValueError(f"give exactly one of path, builtin, url or digest, found {found}")
        if (self.url is None) != (self.sha256 is None):
            raise ValueError("url and sha256 go together")
        return self

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str | None) -> str | None:
        if path is None:
            return None
        parts = path.removesuffix("/").removeprefix("./").split("/")
        if (
            path.startswith("/")
            or any(part in ("", ".", "..") for part in parts)
            or "\\" in path
            or not path.isprintable()
        ):
            raise ValueError(f"'{path}' is not a folder of this repository; write it as packages/name")
        return "/".join(parts)


class PackageBody(Document):
    """One version of a package."""

    version: Annotated[str, Field(examples=["1.0.0"])]
    """Semantic version; the manifest must say the same."""
    source: PackageSource
    distribute: Literal["needed", "all"] = "needed"
    """`all`: on every node, even without an instance."""

    @field_validator("version")
    @classmethod
    def _semantic(cls, version: str) -> str:
        if not is_version(version):
            raise ValueError(f"'{version}' is not a semantic version such as 1.2.0")
        return version


class Package(Document):
    """A package: (name, version) is its key; several versions may be there at once."""

    api_version: Literal["tdie/v1"]
    kind: Literal["Package"]
    metadata: Metadata
    spec: PackageBody


# --------------------------------------------------------------------------------------------------- Instance


class Publisher(Document):
    """The way the messages of a replica leave it."""

    package: Reference
    settings: Settings = {}


class Subscribe(Document):
    """Messages that the replicas get; each one goes to one of them."""

    topic: Topic
    """Where they are published, e.g. `files`."""
    type: Annotated[str, Field(max_length=200)] = ""
    """Only messages of this type; empty takes all."""


class PlacementBody(Document):
    """Where replicas may run, and where they rather should."""

    where: Expression = ""
    """Only nodes whose labels match, e.g. `zone == 'a'`; `node` is the node's name."""
    prefer: list[Expression] = []
    """Expressions; a node that matches more of them is better."""
    spread: str = ""
    """A label over whose values replicas are spread; `node` spreads over nodes."""
    strategy: Literal["evenness", "least-loaded", "pack"] = "least-loaded"
    max_per_node: Annotated[int, Field(ge=1)] | None = None


class Update(Document):
    """How a change reaches the replicas."""

    max_parallel: CountOrShare = Share(1)
    """How many replicas may be away at once, e.g. 1 or 20%."""
    min_healthy_time: Seconds = 10.0
    """How long a new replica must be healthy before the next one."""
    healthy_deadline: Seconds = 300.0
    """After this a new replica that is not healthy halts the rollout."""
    progress_deadline: Seconds | None = None
    """After this without another new replica that became healthy the rollout is halted. 10m, or twice healthyDeadline if longer."""
    canary: Annotated[int, Field(ge=0)] = 0
    """Not available in this version."""
    auto_revert: bool = False
    """Not available in this version."""

    @property
    def longest_standstill(self) -> float:
        """Seconds of `progressDeadline`."""
        return max(600.0, 2 * self.healthy_deadline) if self.progress_deadline is None else self.progress_deadline

    @model_validator(mode="after")
    def _patient(self) -> Update:
        if self.longest_standstill < self.healthy_deadline:
            raise ValueError("progressDeadline is shorter than healthyDeadline: no replica could be given that long")
        return self


class Restart(Document):
    """How a crashed replica comes back; the first restart is immediate."""

    attempts: Annotated[int, Field(ge=0, le=1000)] = 2
    interval: Seconds = 1800.0
    delay: Seconds = 15.0
    mode: Literal["fail", "delay"] = "fail"


class Health(Document):
    """A probe beyond the replica's own state: one of http, tcp, exec, component."""

    http: str | None = None
    """A path such as /health on the replica's port, or a URL."""
    tcp: Port | None = None
    """A port that must accept connections."""
    exec: str | None = None
    """A command line that must exit with 0."""
    component: bool = False
    """Whether the component itself is asked: its `check` must return."""
    interval: Rhythm = 10.0
    timeout: Rhythm = 2.0

    @model_validator(mode="after")
    def _one(self) -> Health:
        given = [name for name in ("http", "tcp", "exec", "component") if getattr(self, name) not in (None, False)]
        if len(given) > 1:
            raise ValueError(f"give one of http, tcp, exec, component, found {' and '.join(given)}")
        return self


class DependsOn(Document):
    """Another instance that must be up first."""

    instance: Name
    condition: Literal["healthy", "started"] = "healthy"


class Limits(Document):
    """Upper bounds of one replica."""

    cpu: Annotated[float, Field(gt=0)] | None = None
    """Cores, e.g. 0.5."""
    memory: Bytes | None = None
    """Memory, e.g. `256Mi`."""


class InstanceBody(Document):
    """What runs, how many of it, and how it is looked after."""

    package: Reference
    """`name@1.0.0`, or a range such as `name@^1.0`."""
    replicas: Annotated[int, Field(ge=0, le=100_000)] | None = None
    """How many in the whole cluster; either this or perNode."""
    per_node: Annotated[int, Field(ge=0, le=1000)] | None = None
    """How many on every matching node; either this or replicas."""
    settings: Settings = {}
    """Laid over the package's defaults and checked by its schema."""
    env: dict[str, str] = {}
    """Environment of the process."""
    publisher: Publisher | None = None
    subscribe: list[Subscribe] = []
    """What its component receives: from the publisher's broker if that can deliver, else from the bus of the nodes."""
    placement: PlacementBody = PlacementBody()
    lease: Literal["none", "strict", "failsafe"] = "none"
    """`strict`: at most one process of a replica anywhere, also when machines cannot talk to each other; it then stops rather
    than run twice. `failsafe` is not available in this version."""
    update: Update = Update()
    restart: Restart = Restart()
    health: Health = Health()
    ports: list[Port] = []
    """Ports a replica listens on; two replicas with the same port never share a node."""
    depends_on: list[DependsOn] = []
    wave: Annotated[int, Field(ge=-1000, le=1000)] = 0
    """Lower waves go first."""
    resources: Limits = Limits()
    suspend: bool = False
    """True: leave this instance as it is."""
    protected: bool = False
    """True: never stopped for having left Git, without confirmation."""
    moved_from: Name | None = None
    """The old name of this instance: a rename without stopping anything."""

    @model_validator(mode="after")
    def _count(self) -> InstanceBody:
        if (self.replicas is None) == (self.per_node is None):
            raise ValueError("give either replicas or perNode" + ("" if self.replicas is None else ", not both"))
        return self

    @field_validator("env")
    @classmethod
    def _environment(cls, env: dict[str, str]) -> dict[str, str]:
        for name, value in env.items():
            if not name or "=" in name or "\0" in name or "\0" in value:
                raise ValueError(f"'{name}' cannot be an environment variable")
            if name.startswith(RESERVED_ENV):
                raise ValueError(f"'{name}': names that start with {RESERVED_ENV} are reserved")
        return env

    @field_validator("subscribe")
    @classmethod
    def _once(cls, subscribe: list[Subscribe]) -> list[Subscribe]:
        for number, one in enumerate(subscribe):
            if any(other.topic == one.topic and other.type in ("", one.type) for other in subscribe[:number]):
                raise ValueError(f"topic '{one.topic}' with type '{one.type}' is subscribed to twice")
        return subscribe

    @field_validator("ports")
    @classmethod
    def _distinct(cls, ports: list[int]) -> list[int]:
        if twice := sorted({port for port in ports if ports.count(port) > 1}):
            raise ValueError(f"port {twice[0]} is listed twice")
        return ports


class Instance(Document):
    """One component with its settings: as many replicas as asked for, kept running."""

    api_version: Literal["tdie/v1"]
    kind: Literal["Instance"]
    metadata: InstanceMetadata
    spec: InstanceBody


AnyDocument = Cluster | Package | Instance
KINDS: dict[str, type[Cluster] | type[Package] | type[Instance]] = {
    "Cluster": Cluster,
    "Package": Package,
    "Instance": Instance,
}
