"""The script language of planning stories (tests/golden/planning/README.md), on the planner alone."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from agent.clock import Monotonic
from agent.wire import (
    Capacity,
    LeaseStatus,
    PackageRef,
    PublisherSpec,
    ReplicaPolicy,
    ReplicaSpec,
    ReplicaState,
    Resources,
    digest_of,
)
from reconciler.model.desired import (
    ClusterSpec,
    Dependency,
    DesiredState,
    InstanceSpec,
    NodeSpec,
    Placement,
    Share,
    UpdatePolicy,
)
from reconciler.model.observed import (
    Confirmed,
    NodeView,
    NodeWish,
    ObservedState,
    Presence,
    Record,
    ReplicaView,
    Window,
)
from reconciler.model.plan import Plan
from reconciler.planning import Memo, plan
from reconciler.planning.render import text
from reconciler.simulation.executed import carried_out, executed, sent

CAPACITY = {"slots": int, "cpu": float, "memory": int}


def package(name_and_version: str) -> PackageRef:
    name, _, version = name_and_version.partition("@")
    return PackageRef(name=name, version=version, digest=digest_of(name_and_version))


def share(value: str) -> Share:
    return Share(int(value.rstrip("%")), percent=value.endswith("%"))


def instance(
    name: str, pkg: str | None = None, *, settings: dict[str, Any] | None = None, **kwargs: Any
) -> InstanceSpec:
    """An instance as source/ would resolve it; `pkg` is NAME@VERSION."""
    resources = kwargs.pop("resources", Resources())
    publisher = kwargs.pop("publisher", None)
    spec = ReplicaSpec(
        package=package(pkg or f"{name}@1.0"),
        settings=settings or {},
        env=kwargs.pop("env", {}),
        publisher=PublisherSpec(package=package(publisher)) if publisher else None,
        resources=resources,
    )
    if "per_node" not in kwargs:
        kwargs.setdefault("replicas", 1)
    return InstanceSpec(name, spec, spec.hash(), **kwargs)


@dataclass
class Story:
    """A fleet, a repository and a clock that only the script moves."""

    cluster: ClusterSpec = field(default_factory=lambda: ClusterSpec("test", {}))
    instances: dict[str, InstanceSpec] = field(default_factory=dict)
    observed: ObservedState = field(default_factory=lambda: ObservedState(1, {}))
    record: Record = field(default_factory=Record)
    marked: tuple[int, ClusterSpec, dict[str, InstanceSpec]] = (0, ClusterSpec("", {}), {})
    now: float = 1000.0
    commits: int = 0
    memo: Memo = field(default_factory=Memo)
    out: list[str] = field(default_factory=list)

    @property
    def desired(self) -> DesiredState:
        return DesiredState(f"c{self.commits}", self.cluster, dict(sorted(self.instances.items())))

    def plan(self) -> Plan:
        """The plan now, made with and without a memo, which must agree."""
        with_memo = plan(self.desired, self.observed, self.record, Monotonic(self.now), self.memo)
        without = plan(self.desired, self.observed, self.record, Monotonic(self.now))
        assert with_memo == without, "a memo changed the plan"
        return without

    def run(self, line: str) -> None:
        verb, _, rest = line.partition(" ")
        method: Callable[[str], None] | None = getattr(self, f"do_{verb}", None)
        assert method is not None, f"unknown line: {line}"
        method(rest.strip())

    # ------------------------------------------------------------------------------------------ Git

    def do_cluster(self, rest: str) -> None:
        sync: dict[str, Any] = {}
        failover: dict[str, Any] = {}
        other: dict[str, Any] = {}
        for word in shlex.split(rest):
            key, _, value = word.partition("=")
            if key == "maxPrune":
                sync["max_prune"] = share(value)
            elif key in ("mode", "prune"):
                sync[key] = value
            elif key == "selfHeal":
                sync["self_heal"] = value == "true"
            elif key == "massAtLeast":
                failover["mass_at_least"] = int(value)
            elif key == "packages":
                other["packages"] = tuple(package(p) for p in value.split(",") if p)
            else:
                raise AssertionError(word)
        self.cluster = replace(
            self.cluster,
            sync=replace(self.cluster.sync, **sync),
            failover=replace(self.cluster.failover, **failover),
            **other,
        )
        self.commits += 1

    def do_commit(self, rest: str) -> None:
        head, *words = shlex.split(rest.replace(", ", " "), posix=False)
        name = head.partition("@")[0]
        kwargs: dict[str, Any] = {}
        placement: dict[str, Any] = {}
        update: dict[str, Any] = {}
        settings: dict[str, Any] = {}
        policy: dict[str, Any] = {}
        where = re.search(r"where (.*?)(?: ;|$)", rest)
        if where:
            placement["where"] = where[1]
            words = shlex.split(rest.replace(where[0], "").replace(", ", " "), posix=False)[1:]
        it = iter(words)
        for word in it:
            if word == "on":
                kwargs["replicas"] = int(next(it))
            elif word == "per":
                next(it)
                kwargs["per_node"] = int(next(it))
            elif word == "at":  # at most N down
                next(it)
                update["max_parallel"] = share(next(it))
                next(it)
            elif word == "of":
                kwargs["pkg"] = next(it)
            elif word == "soak":
                update["min_healthy_time"] = float(next(it))
            elif word == "deadline":
                update["healthy_deadline"] = float(next(it))
            elif word == "progress":
                update["progress_deadline"] = float(next(it))
            elif word == "set":
                key, _, value = next(it).partition("=")
                settings[key] = value
            elif word == "env":
                key, _, value = next(it).partition("=")
                kwargs.setdefault("env", {})[key] = value
            elif word == "wave":
                kwargs["wave"] = int(next(it))
            elif word == "after":
                needed, _, condition = next(it).partition(":")
                more = Dependency(needed, "started" if condition == "started" else "healthy")
                kwargs["depends_on"] = (*kwargs.get("depends_on", ()), more)
            elif word == "port":
                policy["ports"] = (int(next(it)),)
            elif word in ("cpu", "memory"):
                kwargs.setdefault("res", {})[word] = float(next(it))
            elif word in ("spread", "strategy", "rebalance"):
                placement[word] = next(it)
            elif word == "prefer":
                placement["prefer"] = (next(it).replace("=", " == '") + "'",)
            elif word == "max":
                placement["max_per_node"] = int(next(it))
            elif word == "publisher":
                kwargs["publisher"] = next(it)
            elif word == "from":
                kwargs["moved_from"] = next(it)
            elif word == "exec":
                kwargs["runtime"] = "exec"
            elif word == "suspended":
                kwargs["suspend"] = True
            elif word == "protected":
                policy["protected"] = True
            elif word == "lease":
                policy["lease"] = next(it)
            elif word == "grace":
                policy["stop_grace"] = float(next(it))
            else:
                raise AssertionError(f"unknown word {word!r} in {rest!r}")
        resources = Resources(**kwargs.pop("res", {}))
        self.instances[name] = instance(
            name,
            kwargs.pop("pkg", head),
            settings=settings,
            resources=resources,
            policy=ReplicaPolicy(**policy),
            placement=Placement(**placement),
            update=UpdatePolicy(**update),
            **kwargs,
        )
        self.commits += 1

    def do_drop(self, rest: str) -> None:
        for name in rest.split():
            del self.instances[name]
        self.commits += 1

    def _nodes(self, nodes: dict[str, NodeSpec]) -> None:
        self.cluster = replace(self.cluster, nodes=nodes)
        self.commits += 1

    def do_unlist(self, rest: str) -> None:
        self._nodes({name: spec for name, spec in self.cluster.nodes.items() if name != rest})

    def do_list(self, rest: str) -> None:
        self._nodes({**self.cluster.nodes, rest: NodeSpec(rest)})

    def do_cordon(self, rest: str) -> None:
        self._nodes({**self.cluster.nodes, rest: replace(self.cluster.nodes[rest], cordoned=True)})

    def do_uncordon(self, rest: str) -> None:
        self._nodes({**self.cluster.nodes, rest: replace(self.cluster.nodes[rest], cordoned=False)})

    # ---------------------------------------------------------------------------------------- nodes

    def do_fleet(self, rest: str) -> None:
        for word in rest.split():
            self.do_node(word)
        self.commits = 0

    def do_node(self, rest: str) -> None:
        name, *pairs = re.split("[:,]", rest)
        values = dict(pair.split("=") for pair in pairs)
        capacity = Capacity(**{key: CAPACITY[key](value) for key, value in values.items() if key in CAPACITY})
        labels = {key: value for key, value in values.items() if key not in CAPACITY}
        self._nodes({**self.cluster.nodes, name: NodeSpec(name, labels=labels, capacity=capacity)})
        self._view(NodeView(name, Presence.ALIVE))

    def _view(self, view: NodeView) -> None:
        self.observed = replace(self.observed, nodes={**self.observed.nodes, view.name: view})

    def _be(self, rest: str, presence: Presence) -> None:
        for name in rest.split():
            view = self.observed.nodes[name]
            self._view(replace(view, presence=presence, since=Monotonic(self.now), vanishing=False))

    def do_lose(self, rest: str) -> None:
        self._be(rest, Presence.LOST)

    def do_vanish(self, rest: str) -> None:
        """Both witnesses miss these nodes, but not for lostAfter yet."""
        self._be(rest, Presence.UNREACHABLE)
        for name in rest.split():
            self._view(replace(self.observed.nodes[name], vanishing=True))

    def do_silence(self, rest: str) -> None:
        self._be(rest, Presence.UNREACHABLE)

    def do_join(self, rest: str) -> None:
        self._be(rest, Presence.JOINING)

    def do_shows(self, rest: str) -> None:
        """Consul shows these replicas on a node that never answered."""
        name, *replicas = rest.split()
        view, shown = self.observed.nodes[name], frozenset(replicas)
        lost = view.presence is Presence.LOST
        self._view(replace(view, last_shown=shown) if lost else replace(view, may_run=shown))

    def do_return(self, rest: str) -> None:
        self._be(rest, Presence.ALIVE)

    def do_absent(self, rest: str) -> None:
        self._be(rest, Presence.ABSENT)

    def do_drain(self, rest: str) -> None:
        """`drain a by ann: new disk within 60`."""
        found = re.fullmatch(r"(\S+) by (\w+): (.*?)(?: within (\d+))?", rest)
        assert found is not None, rest
        deadline = None if found[4] is None else Monotonic(self.now + float(found[4]))
        self._wish(found[1], NodeWish(found[2], found[3], drain=True, deadline=deadline))

    def do_keep(self, rest: str) -> None:
        self._wish(rest, None)

    def _wish(self, name: str, wish: NodeWish | None) -> None:
        self._view(replace(self.observed.nodes[name], wish=wish))

    def do_lead(self, rest: str) -> None:
        """Another controller takes over: a higher epoch, generations from 1."""
        nodes = {name: replace(view, next_generation=1) for name, view in self.observed.nodes.items()}
        self.observed = replace(self.observed, epoch=self.observed.epoch + 1, nodes=nodes)

    def do_lock(self, rest: str) -> None:
        name, _, holder = rest.partition(" by ")
        self._view(replace(self.observed.nodes[name], locked_by=holder))

    def do_unlock(self, rest: str) -> None:
        self._view(replace(self.observed.nodes[rest], locked_by=""))

    def do_nopackage(self, rest: str) -> None:
        name, pkg, error = rest.split(" ", 2)
        view = self.observed.nodes[name]
        self._view(replace(view, package_errors={**view.package_errors, package(pkg).digest: error}))

    def do_haspackage(self, rest: str) -> None:
        name, pkg = rest.split()
        view, digest = self.observed.nodes[name], package(pkg).digest
        errors = {of: why for of, why in view.package_errors.items() if of != digest}
        self._view(replace(view, package_errors=errors, installed=view.installed | {digest}))

    # -------------------------------------------------------------------------------------- replicas

    def _row(self, replica: str, **changes: Any) -> None:
        for view in self.observed.nodes.values():
            if replica in view.replicas:
                row = replace(view.replicas[replica], since=Monotonic(self.now), **changes)
                self._view(replace(view, replicas={**view.replicas, replica: row}))

    def do_fail(self, rest: str) -> None:
        replica, _, error = rest.partition(" ")
        self._row(replica, state=ReplicaState.FAILED, healthy=False, last_error=error)

    def do_crash(self, rest: str) -> None:
        replica, _, error = rest.partition(" ")
        self._row(replica, state=ReplicaState.BACKOFF, healthy=False, last_error=error)

    def do_sicken(self, rest: str) -> None:
        replica, _, error = rest.partition(" ")
        self._row(replica, state=ReplicaState.STARTED, healthy=False, last_error=error)

    def do_lease(self, rest: str) -> None:
        """`lease b web.0 waiting WAITING_LEASE by a until 30`: what b says of the lease; without it the replica does not run."""
        found = re.fullmatch(
            r"(\S+) (\S+) (\w+)(?: ([A-Z_]+))?(?: by (\S+))?(?: until (\d+))?(?: token ([\d.]+))?", rest
        )
        assert found is not None, rest
        name, replica = found[1], found[2]
        until = self.now + float(found[6]) if found[6] else None
        lease = LeaseStatus.model_validate(
            {
                "state": found[3],
                "code": found[4] or "",
                "holder": (found[5] or "").replace(",", ", "),
                "until": until,
                "token": found[7] or "",
            }
        )
        view = self.observed.nodes[name]
        row = view.replicas.get(replica) or self._pending(view, replica)
        if lease.missing:
            row = replace(row, state=ReplicaState.PENDING, healthy=False, since=Monotonic(self.now))
        self._view(replace(view, replicas={**view.replicas, replica: replace(row, lease=lease)}))

    def _pending(self, view: NodeView, replica: str) -> ReplicaView:
        assert view.assignment is not None
        entry = next(order for order in view.assignment.replicas if order.replica == replica)
        return ReplicaView(
            replica,
            entry.instance,
            entry.spec_hash,
            entry.spec.package,
            ReplicaState.PENDING,
            False,
            Monotonic(self.now),
        )

    def do_start(self, rest: str) -> None:
        self._row(rest, state=ReplicaState.STARTING, healthy=False)

    def do_stop(self, rest: str) -> None:
        self._row(rest, state=ReplicaState.STOPPED, healthy=False)

    def do_heal(self, rest: str) -> None:
        self._row(rest, state=ReplicaState.STARTED, healthy=True, last_error="")

    def do_forget(self, rest: str) -> None:
        for view in self.observed.nodes.values():
            self._view(replace(view, replicas={n: row for n, row in view.replicas.items() if n != rest}))

    def do_amnesia(self, rest: str) -> None:
        """The agent of this node lost what it had written down."""
        self._view(replace(self.observed.nodes[rest], assignment=None, accepted=None, next_generation=1))

    def do_wipe(self, rest: str) -> None:
        """This node is another machine of that name, and knows nothing."""
        self.do_amnesia(rest)
        view = self.observed.nodes[rest]
        self._view(replace(view, replicas={}, installed=frozenset(), ran=frozenset(view.replicas)))

    # ------------------------------------------------------------------------------------------ time

    def do_wait(self, rest: str) -> None:
        self.now += float(rest)

    def do_send(self, rest: str) -> None:
        self.observed = sent(self.plan(), self.observed, rest.split() or None)

    def do_report(self, rest: str) -> None:
        for name in rest.split():
            self._view(carried_out(self.observed.nodes[name], Monotonic(self.now)))

    def do_apply(self, rest: str) -> None:
        self.observed = executed(
            self.plan(), self.observed, Monotonic(self.now), nodes=rest.split() or None, soaked=False
        )

    def do_settle(self, rest: str) -> None:
        for _ in range(200):
            made = self.plan()
            if not made.targets and made.look_again_at is None:
                return
            if made.targets:
                self.observed = executed(made, self.observed, Monotonic(self.now), soaked=False)
            elif made.look_again_at is not None:
                self.now = made.look_again_at
        raise AssertionError("this never settles")

    def do_approve(self, rest: str) -> None:
        ids = [c.id for c in self.plan().changes if rest in ("all", c.replica)]
        self.record = replace(self.record, approved=self.record.approved | frozenset(ids))

    def do_mark(self, _rest: str) -> None:
        """`rollback` goes back to what is in force now."""
        self.marked = (self.commits, self.cluster, dict(self.instances))

    def do_rollback(self, _rest: str) -> None:
        self.commits, self.cluster, self.instances = self.marked
        self.record = replace(self.record, rolled_back=True)

    def do_close(self, rest: str) -> None:
        """The cluster's windows are closed for so many seconds."""
        until = Monotonic(self.now + float(rest))
        self.record = replace(self.record, window=Window(False, "outside of sync.windows", until))

    def do_open(self, _rest: str) -> None:
        self.record = replace(self.record, window=Window())

    def do_confirm(self, rest: str) -> None:
        self.record = replace(self.record, confirmed_prune=self.plan().digest)

    def do_gone(self, rest: str) -> None:
        """A person says that the nodes lost together are gone."""
        self.record = replace(self.record, confirmed_lost=Confirmed(self.plan().lost_digest, Monotonic(self.now)))

    def do_plan(self, rest: str) -> None:
        made = self.plan()
        self.out = text(made).splitlines()
        if made.look_again_at is not None:
            self.out.append(f"look again in {made.look_again_at - self.now:g} s")

    def do_targets(self, rest: str) -> None:
        self.out = []
        for name, target in self.plan().targets.items():
            packages = " ".join(str(order.package) for order in target.packages) or "nothing"
            self.out.append(f"{name} has {packages}" + (f", after {', '.join(target.after)}" if target.after else ""))
            for order in target.replicas:
                renamed = f" renamed from {order.renamed_from}" if order.renamed_from else ""
                self.out.append(f"  {order.replica} {order.spec.package} {order.commit} {order.ordered}{renamed}")
        self.out = self.out or ["nothing goes out"]


def run_story(script: str) -> str:
    """The script with every expected block replaced by what comes out now."""
    story = Story()
    found: list[str] = []
    for line in script.splitlines():
        if line.startswith("  |"):
            continue
        found.append(line)
        command = line.partition("#")[0].strip()
        if command:
            story.run(command)
            found += [f"  | {out}".rstrip() for out in story.out]
            story.out = []
    return "\n".join(found) + "\n"
