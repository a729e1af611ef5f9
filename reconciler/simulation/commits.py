"""The commits of a history: instances come, go, grow, move and change; nodes join and leave; some of it is broken."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable
from dataclasses import replace

from agent.wire import FAST_LEASES, USUAL_LEASES, PackageRef, ReplicaPolicy, ReplicaSpec
from reconciler.model.desired import (
    ClusterSpec,
    Dependency,
    DesiredState,
    FailoverPolicy,
    InstanceSpec,
    NodeSpec,
    Placement,
    Share,
    SyncPolicy,
    UpdatePolicy,
)
from reconciler.simulation.world import LOST_AFTER

NAMES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen")


class Repository:
    """What people have written, and the next thing they write."""

    def __init__(
        self,
        random: random.Random,
        cluster: str,
        secret: str,
        pushed: Callable[[DesiredState], None],
        *,
        failsafe: bool = False,
    ) -> None:
        """`secret` is in the settings of every instance; with `failsafe` many have such leases."""
        self._random = random
        self._cluster = cluster
        self._secret = secret
        self._lease_kinds = ["none", "strict", "failsafe", "failsafe"] if failsafe else ["none", "none", "strict"]
        self._pushed = pushed
        self._versions = 0
        self._renames = 0
        self._retain = random.choice([None, None, 1, 2])
        self._leases = random.choice([USUAL_LEASES, FAST_LEASES])
        self._max_prune = Share(random.choice([20, 40, 100]), percent=True)
        self.count = 0
        self.nodes: set[str] = set()
        self.instances: dict[str, InstanceSpec] = {}
        self.dropped: dict[str, InstanceSpec] = {}

    @property
    def tip(self) -> str:
        """The id of the last good commit."""
        return f"{self.count:040x}"

    def begin(self, nodes: Iterable[str]) -> None:
        """The first commit."""
        self.nodes = set(nodes)
        for name in self._random.sample(NAMES, self._random.randint(3, 6)):
            self.instances[name] = self._new(name)
        self.publish()

    def change(self, *, version_only: bool = False) -> str:
        """A new commit; returns the version (name@version) it brings, if it brings one."""
        actions = [self._version, self._version, self._scale, self._settings, self._add, self._drop, self._policy]
        actions += [self._place, self._rename, self._wave, self._lease]
        action = self._version if version_only or not self.instances else self._random.choice(actions)
        name = self._random.choice(sorted(self.instances) or list(NAMES))
        version = action(name) or ""
        self.publish()
        return version

    def drop_many(self) -> None:
        """More leaves Git at once than may go without a person's word."""
        names = self._random.sample(sorted(self.instances), len(self.instances) // 2)
        for name in names:
            self.dropped[name] = self.instances[name]
            self._forget(name)
        self.publish()

    def bring_back(self) -> None:
        """What left comes back."""
        for name, spec in sorted(self.dropped.items()):
            self.instances.setdefault(name, replace(spec, depends_on=(), moved_from=None))
        self.dropped.clear()
        self.publish()

    def renew(self) -> None:
        """Everything gets a version that works, and whatever left Git may go."""
        self._max_prune = Share(100, percent=True)
        self.instances = {name: self._with_version(spec) for name, spec in self.instances.items()}
        self.publish()

    def publish(self) -> None:
        """What is written now is the tip. A name that is taken again is nobody's former one: Git would be refused."""
        self.count += 1
        for name, spec in self.instances.items():
            if spec.moved_from in self.instances:
                self.instances[name] = replace(spec, moved_from=None)
        nodes = {name: NodeSpec(name, {"zone": "xy"[ord(name[0]) % 2]}) for name in sorted(self.nodes)}
        cluster = ClusterSpec(
            self._cluster,
            nodes,
            sync=SyncPolicy(max_prune=self._max_prune),
            failover=FailoverPolicy(lost_after=LOST_AFTER),
            retain_versions=self._retain,
            leases=self._leases,
        )
        instances = {name: self.instances[name] for name in sorted(self.instances)}
        self._pushed(DesiredState(self.tip, cluster, instances, subject=f"commit {self.count}"))

    # ------------------------------------------------------------------------------------------- what people do

    def _version(self, name: str) -> str:
        spec = self.instances[name] = self._with_version(self.instances.get(name) or self._new(name))
        return str(spec.spec.package)

    def _scale(self, name: str) -> None:
        spec = self.instances[name]
        if spec.replicas is not None:
            self.instances[name] = replace(spec, replicas=self._random.randint(1, 6))

    def _settings(self, name: str) -> None:
        spec = self.instances[name]
        settings = {**spec.spec.settings, "x": self._random.randint(0, 9)}
        self.instances[name] = _with_spec(spec, spec.spec.model_copy(update={"settings": settings}))

    def _add(self, _name: str) -> None:
        free = [name for name in NAMES if name not in self.instances]
        if free:
            name = self._random.choice(free)
            self.instances[name] = self._new(name)

    def _drop(self, name: str) -> None:
        if len(self.instances) > 2:
            self._forget(name)

    def _policy(self, name: str) -> None:
        self.instances[name] = replace(self.instances[name], update=self._update())

    def _place(self, name: str) -> None:
        self.instances[name] = replace(self.instances[name], placement=self._placement())

    def _rename(self, name: str) -> None:
        self._renames += 1
        spec = self.instances[name]
        if spec.moved_from is None and not any(_needs(other, name) for other in self.instances.values()):
            new = f"{name.split('-')[0]}-{self._renames}"
            del self.instances[name]
            self.instances[new] = replace(spec, name=new, moved_from=name)

    def _wave(self, name: str) -> None:
        self.instances[name] = replace(self.instances[name], wave=self._random.choice([0, 0, 1, 2]))

    def _lease(self, name: str) -> None:
        self.instances[name] = replace(self.instances[name], policy=self._random_policy())

    # ------------------------------------------------------------------------------------------- parts

    def _forget(self, name: str) -> None:
        """The instance is gone, and nobody depends on it."""
        del self.instances[name]
        for other, spec in self.instances.items():
            if _needs(spec, name):
                kept = tuple(d for d in spec.depends_on if d.instance != name)
                self.instances[other] = replace(spec, depends_on=kept)

    def _new(self, name: str) -> InstanceSpec:
        spec = ReplicaSpec(package=PackageRef(name=name, version="1.0.0", digest=""), settings={"key": self._secret})
        count = self._random.randint(1, 5)
        shape = {"per_node": 1} if self._random.random() < 0.25 else {"replicas": count}
        earlier = sorted(other for other in self.instances if other < name)  # so that nothing goes round in a circle
        needs = (Dependency(self._random.choice(earlier)),) if earlier and self._random.random() < 0.4 else ()
        made = InstanceSpec(
            name,
            spec,
            spec.hash(),
            placement=self._placement(),
            update=self._update(),
            policy=self._random_policy(),
            depends_on=needs,
            wave=self._random.choice([0, 0, 0, 1]),
            **shape,  # type: ignore[arg-type]  # one of two ints
        )
        return self._with_version(made)

    def _placement(self) -> Placement:
        return Placement(
            where=self._random.choice(["", "", "", "", "zone == 'x'"]),
            spread=self._random.choice(["", "zone"]),
            strategy=self._random.choice(["least-loaded", "least-loaded", "pack", "evenness"]),
        )

    def _random_policy(self) -> ReplicaPolicy:
        return ReplicaPolicy.model_validate({"lease": self._random.choice(self._lease_kinds)})

    def _update(self) -> UpdatePolicy:
        return UpdatePolicy(
            max_parallel=self._random.choice([Share(1), Share(1), Share(2), Share(50, percent=True)]),
            min_healthy_time=self._random.choice([0.0, 1.0, 10.0]),
            healthy_deadline=30.0,
        )

    def _with_version(self, instance: InstanceSpec) -> InstanceSpec:
        self._versions += 1
        package = _package(instance.spec.package.name, f"1.{self._versions}.0")
        return _with_spec(instance, instance.spec.model_copy(update={"package": package}))


def _with_spec(instance: InstanceSpec, spec: ReplicaSpec) -> InstanceSpec:
    return replace(instance, spec=spec, spec_hash=spec.hash())


def _package(name: str, version: str) -> PackageRef:
    digest = hashlib.sha256(f"{name}@{version}".encode()).hexdigest()
    return PackageRef(name=name, version=version, digest=digest)


def _needs(spec: InstanceSpec, name: str) -> bool:
    return any(dependency.instance == name for dependency in spec.depends_on)
