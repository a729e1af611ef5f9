"""How scripts say what an instance should be: `web@1.0 on 3, at most 1 down, after db`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from agent.wire import PackageRef, PublisherSpec, ReplicaSpec
from reconciler.model.desired import Dependency, InstanceSpec, Share, UpdatePolicy

_COMMIT = re.compile(r"(?P<package>(?P<name>[a-z0-9-]+)@[\w.]+)(?P<rest>.*)")


@dataclass(frozen=True, slots=True)
class BadLine(ValueError):
    """A line of a script that nobody understands."""

    line: int
    text: str

    def __str__(self) -> str:
        return f"line {self.line}: what does '{self.text}' mean?"


def full(package: str) -> str:
    """`web@1.0` → `web@1.0.0`."""
    name, _, version = package.partition("@")
    return f"{name}@{version if version.count('.') == 2 else version + '.0'}"


def package_of(text: str) -> PackageRef:
    """`web@1.0` → a package with a digest of its own."""
    name, _, version = full(text).partition("@")
    return PackageRef(name=name, version=version, digest=hashlib.sha256(f"{name}@{version}".encode()).hexdigest())


def instance_of(text: str) -> InstanceSpec:
    """`web@1.0 on 3, at most 1 down, after db` → an InstanceSpec."""
    found = _COMMIT.fullmatch(text)
    if found is None:
        raise BadLine(0, text)
    spec = ReplicaSpec(package=package_of(found["package"]))
    instance = InstanceSpec(
        found["name"], spec, spec.hash(), replicas=1, update=UpdatePolicy(min_healthy_time=1.0, healthy_deadline=30.0)
    )
    for clause in re.split(r",\s*|\s+(?=on |per |at |after )", found["rest"].strip()):
        instance = _with_clause(instance, clause.strip())
    return instance


def _with_clause(instance: InstanceSpec, clause: str) -> InstanceSpec:
    if not clause:
        return instance
    for pattern, change in _CLAUSES:
        if found := re.fullmatch(pattern, clause):
            return change(instance, *found.groups())
    raise BadLine(0, clause)


def _placed(instance: InstanceSpec, **changes: Any) -> InstanceSpec:
    return replace(instance, placement=replace(instance.placement, **changes))


def _updated(instance: InstanceSpec, **changes: Any) -> InstanceSpec:
    return replace(instance, update=replace(instance.update, **changes))


def _ruled(instance: InstanceSpec, **changes: Any) -> InstanceSpec:
    return replace(instance, policy=instance.policy.model_copy(update=changes))


def _running(instance: InstanceSpec, **changes: Any) -> InstanceSpec:
    spec = instance.spec.model_copy(update=changes)
    return replace(instance, spec=spec, spec_hash=spec.hash())


_CLAUSES: tuple[tuple[str, Callable[..., InstanceSpec]], ...] = (
    (r"on (\d+)", lambda instance, count: replace(instance, replicas=int(count))),
    (r"per node (\d+)", lambda instance, count: replace(instance, replicas=None, per_node=int(count))),
    (r"at most (\d+) down", lambda instance, count: _updated(instance, max_parallel=Share(int(count)))),
    (r"auto revert", lambda instance: _updated(instance, auto_revert=True)),
    (r"canary (\d+)", lambda instance, count: _updated(instance, canary=int(count))),
    (r"rebalance gradual", lambda instance: _placed(instance, rebalance="gradual")),
    (r"where (.+)", lambda instance, where: _placed(instance, where=where)),
    (r"spread (\w+)", lambda instance, label: _placed(instance, spread=label)),
    (r"most (\d+) a node", lambda instance, count: _placed(instance, max_per_node=int(count))),
    (r"lease (none|strict|failsafe)", lambda instance, kind: _ruled(instance, lease=kind)),
    (r"port (\d+)", lambda instance, port: _ruled(instance, ports=(int(port),))),
    (r"protected", lambda instance: replace(_ruled(instance, protected=True), protected=True)),
    (r"after (\S+)", lambda instance, name: replace(instance, depends_on=(Dependency(name),))),
    (r"wave (\d+)", lambda instance, wave: replace(instance, wave=int(wave))),
    (r"package (\S+)", lambda one, package: _running(one, package=package_of(package))),
    (r"was (\S+)", lambda instance, name: replace(instance, moved_from=name)),
    (r"set (\w+)=(\S+)", lambda one, key, value: _running(one, settings={**one.spec.settings, key: value})),
    (r"publisher (\S+)", lambda one, package: _running(one, publisher=PublisherSpec(package=package_of(package)))),
)
