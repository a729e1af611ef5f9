"""The Instance document: what runs, how many of it, and how it is looked after."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, WithJsonSchema, field_validator, model_validator

from reconciler.model import where
from reconciler.model.desired import Share
from reconciler.model.documents.base import Document, Metadata, Reference, Settings
from reconciler.model.units import Bytes, CountOrShare, Name, Rhythm, Seconds, shown

RESERVED_ENV = "TDIE_"


def _expression(text: str) -> str:
    where.parse(text)
    return text


def _topic(topic: str) -> str:
    if not 1 <= len(topic) <= 200 or not topic.isprintable() or any(char.isspace() for char in topic):
        raise ValueError(f"expected a topic, up to 200 characters without spaces, found {shown(topic)}")
    return topic


def _instance_name(name: str) -> str:
    if name == "consul" or name.startswith("tdie-"):
        raise ValueError(f"'{name}' is reserved for services of the system itself")
    return name


Expression = Annotated[str, AfterValidator(_expression), Field(examples=["zone == 'a' and disk in ['ssd', 'nvme']"])]
Port = Annotated[int, Field(ge=1, le=65535)]
Topic = Annotated[
    str,
    AfterValidator(_topic),
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^\\S+$", "examples": ["files"]}),
]


class InstanceMetadata(Metadata):
    """What the instance is called; also its service name in Consul."""

    name: Annotated[Name, AfterValidator(_instance_name)]
    """Up to 63 of a-z, 0-9 and '-'; not `consul`, not starting with `tdie-`."""


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
    rebalance: Literal["never", "gradual"] = "never"
    """`gradual`: when a node joins or has more room, replicas move there, one at a time; `never`: the plan only says so."""

    @model_validator(mode="after")
    def _packed_stays_packed(self) -> PlacementBody:
        if self.rebalance == "gradual" and self.strategy == "pack":
            raise ValueError("rebalance: gradual evens nodes out, strategy: pack fills them up: choose one")
        return self


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
    """How many replicas get a new version first; the others wait for `tdie approve`, or `tdie apply`. 0: none."""
    auto_revert: bool = False
    """True: when the rollout of a new version fails, the cluster goes back to the last commit in which this instance ran well."""

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
    than run twice. `failsafe`: it goes on while Consul is away, as long as every node of the cluster, each cycle, promises not to
    start it; one node that does not answer then makes it behave as `strict`."""
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
