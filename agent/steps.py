"""Pure: what an agent does next. The accepted assignment × installed packages × the keeper's rows → ordered steps.

Every replica is looked at on its own: rules are read top to bottom, the first that matches decides, and its reason says why.
A replacement is a Stop now and a Start once the row says Stopped: no progress is stored, so a crash in between costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import TypeAlias

from agent.keeper.protocol import BY_HAND, HostRow
from agent.packages.dependencies import environment_of
from agent.packages.protocol import Installed
from agent.wire import Assignment, PackageOrder, ReplicaOrder
from agent.wire import ReplicaState as S


@dataclass(frozen=True, slots=True)
class Fetch:
    """Install a package; nothing of a replica that needs it is stopped before it is there."""

    package: PackageOrder

    @property
    def key(self) -> str:
        return f"package {self.package.package.digest}"


@dataclass(frozen=True, slots=True)
class Prepare:
    """Make the environment in which packages with dependencies run together."""

    environment: str

    @property
    def key(self) -> str:
        return f"package {self.environment}"


@dataclass(frozen=True, slots=True)
class _OfReplica:
    replica: str
    reason: str

    @property
    def key(self) -> str:
        return self.replica


@dataclass(frozen=True, slots=True)
class Start(_OfReplica):
    """Start a host for this order. `drift`: it ran this very spec and somebody or something stopped it."""

    order: ReplicaOrder
    drift: bool = False


@dataclass(frozen=True, slots=True)
class Stop(_OfReplica):
    """Stop the host; what follows is decided when it is down."""


@dataclass(frozen=True, slots=True)
class Reconfigure(_OfReplica):
    """Give the running host other settings."""

    order: ReplicaOrder


@dataclass(frozen=True, slots=True)
class Adjust(_OfReplica):
    """Give the keeper another policy for a host whose process is not touched."""

    order: ReplicaOrder


@dataclass(frozen=True, slots=True)
class Rename(_OfReplica):
    """The process of `renamed_from` becomes that of this replica."""

    order: ReplicaOrder
    renamed_from: str


@dataclass(frozen=True, slots=True)
class Forget(_OfReplica):
    """Drop the row of a host that is down and not ordered."""


@dataclass(frozen=True, slots=True)
class Collect:
    """Delete a package that nothing needs."""

    digest: str

    @property
    def key(self) -> str:
        return f"package {self.digest}"


Step: TypeAlias = Fetch | Prepare | Start | Stop | Reconfigure | Adjust | Rename | Forget | Collect


@dataclass(frozen=True, slots=True)
class Local:
    """What is true on this machine, as far as steps depend on it."""

    assignment: Assignment | None
    installed: Mapping[str, Installed] = field(default_factory=dict)  # by digest
    rows: Mapping[str, HostRow] = field(default_factory=dict)
    environments: AbstractSet[str] = frozenset()  # names of those that are made
    in_place_refused: AbstractSet[tuple[str, str]] = frozenset()  # (replica, spec hash) that no host would take over
    leases: Mapping[str, str] = field(
        default_factory=dict
    )  # of ordered replicas that need one: held, waiting, elsewhere


@dataclass(frozen=True, slots=True)
class Case:
    """One replica: what is ordered and what is there."""

    replica: str
    wanted: ReplicaOrder | None
    row: HostRow | None
    ready: bool  # its packages are installed, and the environment they share is made
    heir: str = ""  # the ordered replica that takes over this process
    source: HostRow | None = None  # the process this one takes over
    refused: bool = False
    keep_by_hand: bool = True  # what was started by hand is left alone
    lease: str = ""  # held, waiting, or elsewhere; empty when it needs none

    @property
    def state(self) -> str:
        return self.row.state if self.row else ""

    @property
    def down(self) -> bool:
        return self.state in (S.STOPPED, S.FAILED)

    @property
    def without_lease(self) -> bool:
        """Whether it needs a lease that is not held."""
        return self.lease in ("waiting", "elsewhere")

    @property
    def fenced(self) -> bool:
        """Whether the host ended because its lease did."""
        return self.row is not None and bool(self.row.fenced)

    @property
    def leased(self) -> bool:
        """Whether the host that is there was started under a lease."""
        return self.row is not None and self.row.order.lease is not None

    @property
    def by_hand(self) -> bool:
        return is_by_hand(self.replica)

    @property
    def same_spec(self) -> bool:
        return bool(self.row and self.wanted and self.row.spec_hash == self.wanted.spec_hash)


Act: TypeAlias = Callable[[Case, str], Step | None]


def _wait(case: Case, reason: str) -> Step | None:
    return None


def _stop(case: Case, reason: str) -> Step:
    return Stop(case.replica, reason)


def _forget(case: Case, reason: str) -> Step:
    return Forget(case.replica, reason)


def _start(case: Case, reason: str) -> Step:
    return Start(case.replica, reason, _ordered(case))


def _heal(case: Case, reason: str) -> Step:
    return Start(case.replica, reason, _ordered(case), drift=True)


def _reconfigure(case: Case, reason: str) -> Step:
    return Reconfigure(case.replica, reason, _ordered(case))


def _adjust(case: Case, reason: str) -> Step:
    return Adjust(case.replica, reason, _ordered(case))


def _rename(case: Case, reason: str) -> Step:
    order = _ordered(case)
    return Rename(case.replica, reason, order, order.renamed_from or "")


RULES: tuple[tuple[str, Callable[[Case], bool], Act], ...] = (
    ("nothing is ordered and nothing is there", lambda c: c.wanted is None and c.row is None, _wait),
    (
        "started by hand, and over",
        lambda c: c.by_hand and c.state == S.STOPPED and c.row is not None and c.row.pid is None,
        _forget,
    ),
    ("started by hand", lambda c: c.by_hand and c.keep_by_hand, _wait),
    ("its stop is under way", lambda c: c.state == S.STOPPING, _wait),
    ("another replica takes over its process", lambda c: c.wanted is None and bool(c.heir) and not c.down, _wait),
    ("not ordered any more, and down", lambda c: c.wanted is None and c.down, _forget),
    ("not ordered any more", lambda c: c.wanted is None, _stop),
    ("its lease is not held", lambda c: c.without_lease and (c.row is None or c.down), _wait),
    ("its lease is held elsewhere", lambda c: c.lease == "elsewhere" and not c.leased, _stop),
    (
        "its lease is not held yet, or not any more: its keeper sees to it",
        lambda c: c.without_lease and c.leased,
        _wait,
    ),
    ("takes over a running process", lambda c: c.row is None and c.source is not None, _rename),
    ("a package is not installed yet", lambda c: not c.ready and not c.same_spec, _wait),
    ("a package is not installed yet", lambda c: not c.ready and c.state == S.STOPPED, _wait),
    ("its lease was lost, and is held again", lambda c: c.down and c.fenced and bool(c.lease), _start),
    ("ordered and not there", lambda c: c.row is None, _start),
    ("another spec is ordered, and the old one is down", lambda c: c.down and not c.same_spec, _start),
    ("it gave up, and another restart policy is ordered", lambda c: c.state == S.FAILED and not policy_kept(c), _start),
    ("it gave up on this spec", lambda c: c.state == S.FAILED, _wait),
    ("it was stopped, and this cluster leaves it so", lambda c: c.state == S.STOPPED and not heals(c), _wait),
    ("ordered, but it was stopped", lambda c: c.state == S.STOPPED, _heal),
    ("another policy is ordered", lambda c: c.same_spec and not (c.without_lease or policy_kept(c)), _adjust),
    ("as ordered", lambda c: c.same_spec, _wait),
    ("other settings are ordered", lambda c: c.state == S.STARTED and only_settings(c) and not c.refused, _reconfigure),
    ("another spec is ordered", lambda c: True, _stop),
)
"""Reason, condition, action: the first condition that holds decides."""


def step_for(case: Case) -> tuple[Step | None, str]:
    """What to do for one replica, and why; None when there is nothing to do now."""
    for reason, applies, act in RULES:
        if applies(case):
            return act(case, reason), reason
    raise AssertionError("the last rule always applies")


def case_of(replica: str, local: Local, orders: Mapping[str, ReplicaOrder], heirs: Mapping[str, str]) -> Case:
    """The replica with everything its rules look at; `orders` and `heirs` are of the assignment."""
    wanted = orders.get(replica)
    row = local.rows.get(replica)
    source = local.rows.get(wanted.renamed_from) if wanted and wanted.renamed_from and row is None else None
    if source is not None and (source.replica in orders or source.state in (S.STOPPED, S.FAILED, S.STOPPING)):
        source = None
    return Case(
        replica=replica,
        wanted=wanted,
        row=row,
        ready=wanted is not None and is_ready(wanted, local),
        heir=_heir(heirs.get(replica, ""), local.rows),
        source=source,
        keep_by_hand=not (local.assignment and local.assignment.policy.stop_manual),
        lease=local.leases.get(replica, ""),
        refused=wanted is not None and (replica, wanted.spec_hash) in local.in_place_refused,
    )


def is_by_hand(replica: str) -> bool:
    """Whether a replica's name is one of those that the node API gives; no instance in Git may be called so."""
    return replica.startswith(f"{BY_HAND}.")


def orders_of(assignment: Assignment | None) -> tuple[Mapping[str, ReplicaOrder], Mapping[str, str]]:
    """Orders by replica, and who takes over whose process."""
    replicas = assignment.replicas if assignment else ()
    return {o.replica: o for o in replicas}, {o.renamed_from: o.replica for o in replicas if o.renamed_from}


def steps(local: Local) -> tuple[Step, ...]:
    """Everything to do now: packages first, then what ends, then what starts. Empty before any assignment was accepted."""
    if local.assignment is None:
        return ()
    orders, heirs = orders_of(local.assignment)
    found = [step_for(case_of(name, local, orders, heirs))[0] for name in sorted(orders.keys() | local.rows.keys())]
    doing = [step for step in found if step is not None]
    ends = [step for step in doing if isinstance(step, Stop | Forget)]
    return (*fetches(local), *ends, *(step for step in doing if not isinstance(step, Stop | Forget)))


def fetches(local: Local) -> tuple[Fetch, ...]:
    """Every package that is ordered, or needed by an ordered replica, and not installed."""
    if local.assignment is None:
        return ()
    listed = {order.package.digest: order for order in local.assignment.packages}
    for replica in local.assignment.replicas:
        refs = [replica.spec.package, *([replica.spec.publisher.package] if replica.spec.publisher else [])]
        for ref in refs:
            listed.setdefault(ref.digest, PackageOrder(package=ref))
    return tuple(Fetch(order) for digest, order in listed.items() if digest not in local.installed)


def preparations(local: Local) -> tuple[Prepare, ...]:
    """Every environment that two packages of an ordered replica share, and that is not made: known once both are installed."""
    orders = local.assignment.replicas if local.assignment else ()
    shared = {environment(order, local.installed) for order in orders if needed(order) <= local.installed.keys()}
    return tuple(Prepare(name) for name in sorted(shared - local.environments) if "+" in name)


def environment(order: ReplicaOrder, installed: Mapping[str, Installed]) -> str:
    """The name of the environment a replica runs in, empty for the one of the agent; its packages are installed."""
    return environment_of(installed[digest] for digest in needed(order))


def is_ready(order: ReplicaOrder, local: Local) -> bool:
    """Whether everything a start needs is on this machine."""
    if not needed(order) <= local.installed.keys():
        return False
    name = environment(order, local.installed)
    return not name or name in local.environments


def in_use(assignment: Assignment | None, rows: Iterable[HostRow]) -> frozenset[str]:
    """Digests that an assignment orders or a host runs from."""
    used = {order.package.digest for order in assignment.packages} if assignment else set()
    for order in assignment.replicas if assignment else ():
        used |= needed(order)
    for row in rows:
        used.add(row.order.component.digest)
        if row.order.publisher:
            used.add(row.order.publisher.digest)
    return frozenset(used)


def needed(order: ReplicaOrder) -> frozenset[str]:
    """Digests of the packages a replica runs from."""
    publisher = order.spec.publisher
    return frozenset({order.spec.package.digest, *([publisher.package.digest] if publisher else [])})


def heals(case: Case) -> bool:
    """Whether what somebody stopped here is started again without being asked."""
    return case.wanted is not None and case.wanted.policy.heal


def policy_kept(case: Case) -> bool:
    """Whether the keeper already looks after the host by the ordered policy."""
    if case.row is None or case.wanted is None:
        return False
    held, policy = case.row.order, case.wanted.policy
    restart, health = policy.restart, policy.health
    if (held.lease is None) != (policy.lease == "none"):
        return False
    return health.of_component == (held.check_interval, held.check_timeout) and (
        held.restart_attempts,
        held.restart_interval,
        held.restart_delay,
        held.restart_mode,
        held.stop_grace,
    ) == (restart.attempts, restart.interval, restart.delay, restart.mode, policy.stop_grace)


def only_settings(case: Case) -> bool:
    """Whether the running host differs from the order in nothing but settings, and could take them over."""
    if case.row is None or case.wanted is None or case.row.order.runtime == "exec":
        return False
    held, spec = case.row.order, case.wanted.spec
    return (
        held.component.digest == spec.package.digest
        and (held.publisher.digest if held.publisher else None)
        == (spec.publisher.package.digest if spec.publisher else None)
        and dict(held.env) == dict(spec.env)
        and (held.cpu, held.memory) == (spec.resources.cpu, spec.resources.memory)
    )


def _heir(replica: str, rows: Mapping[str, HostRow]) -> str:
    return "" if replica in rows else replica


def _ordered(case: Case) -> ReplicaOrder:
    if case.wanted is None:
        raise AssertionError(f"{case.replica} is not ordered")
    return case.wanted
