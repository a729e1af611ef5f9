"""One Instance document and its packages turned into an InstanceSpec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent.wire import (
    HealthCheck,
    PublisherSpec,
    ReplicaPolicy,
    ReplicaSpec,
    Resources,
    RestartPolicy,
    SubscriptionSpec,
)
from reconciler.model.desired import Dependency, InstanceSpec, Place, Placement, UpdatePolicy
from reconciler.model.documents import Health, Instance, InstanceBody
from reconciler.model.wording import dotted
from reconciler.source.decode import Found, Path
from reconciler.source.shelf import Packaged

Complaint = tuple[Path, str, str, bool]  # path in the document, code, message, at the key?


@dataclass(frozen=True, slots=True)
class Located:
    """An Instance document and its file."""

    file: str
    found: Found
    document: Instance

    @property
    def name(self) -> str:
        return self.document.metadata.name

    @property
    def place(self) -> Place:
        return Place(self.file, self.found.line, self.found.column)


@dataclass(frozen=True, slots=True)
class Made:
    """What came of one document, remembered with everything it was made from."""

    file: str
    found: Found
    package: Packaged
    publisher: Packaged | None
    spec: InstanceSpec | None
    complaints: tuple[Complaint, ...]

    def still(self, located: Located, package: Packaged, publisher: Packaged | None) -> bool:
        """Whether making it again would give the same."""
        same = self.package is package and self.publisher is publisher
        return same and self.found is located.found and self.file == located.file


def make(located: Located, package: Packaged, publisher: Packaged | None) -> Made:
    """The InstanceSpec of a document whose packages are resolved, or everything that is wrong with it."""
    document, body = located.document, located.document.spec
    complaints = [*_kinds(body, package, publisher)]
    settings = _settings(body.settings, package, ("spec", "settings"), complaints)
    told: PublisherSpec | None = None
    if body.publisher is not None and publisher is not None:
        given = _settings(body.publisher.settings, publisher, ("spec", "publisher", "settings"), complaints)
        told = PublisherSpec(package=publisher.ref, settings=given)
    if complaints:
        return Made(located.file, located.found, package, publisher, None, tuple(complaints))
    spec = ReplicaSpec(
        package=package.ref,
        settings=settings,
        env=body.env,
        publisher=told,
        resources=Resources(cpu=body.resources.cpu, memory=body.resources.memory),
        subscribe=tuple(SubscriptionSpec(topic=s.topic, type=s.type) for s in body.subscribe),
    )
    instance = InstanceSpec(
        name=located.name,
        spec=spec,
        spec_hash=spec.hash(),
        runtime=package.manifest.runtime,
        replicas=body.replicas,
        per_node=body.per_node,
        policy=_policy(body),
        placement=_placement(body),
        update=_update(body),
        depends_on=tuple(Dependency(d.instance, d.condition) for d in body.depends_on),
        wave=body.wave,
        suspend=body.suspend,
        protected=body.protected,
        moved_from=body.moved_from,
        labels=document.metadata.labels,
        place=located.place,
    )
    return Made(located.file, located.found, package, publisher, instance, ())


def _kinds(body: InstanceBody, package: Packaged, publisher: Packaged | None) -> list[Complaint]:
    """A component where a publisher belongs, or the other way round; a manifest that does not say is believed."""
    wrong: list[Complaint] = []
    if package.manifest.kind == "publisher":
        wrong.append((("spec", "package"), "PKG_KIND", f"{package.ref} is a publisher, not a component", False))
    if publisher is not None and publisher.manifest.kind == "component":
        path = ("spec", "publisher", "package")
        wrong.append((path, "PKG_KIND", f"{publisher.ref} is a component, not a publisher", False))
    if body.subscribe and package.manifest.runtime == "exec":
        text = f"{package.ref} is a program: only Python components receive messages"
        wrong.append((("spec", "subscribe"), "SUBSCRIBE_EXEC", text, True))
    if body.health.component and package.manifest.runtime == "exec":
        text = f"{package.ref} is a program: only Python components can be asked; use http, tcp or exec"
        wrong.append((("spec", "health", "component"), "HEALTH_EXEC", text, True))
    return wrong


def _settings(given: Mapping[str, Any], package: Packaged, at: Path, complaints: list[Complaint]) -> dict[str, Any]:
    settings, wrong = package.rules.effective(given)
    for path, message, key in wrong:
        text = f"{dotted(path)}: {message} ({package.ref})" if path else f"{message} ({package.ref})"
        complaints.append(((*at, *path), "SETTINGS", text, key))
    return settings


def _policy(body: InstanceBody) -> ReplicaPolicy:
    restart = body.restart
    return ReplicaPolicy(
        restart=RestartPolicy(
            attempts=restart.attempts, interval=restart.interval, delay=restart.delay, mode=restart.mode
        ),
        health=_health(body.health),
        ports=tuple(body.ports),
        protected=body.protected,
        lease=body.lease,
    )


def _health(health: Health) -> HealthCheck:
    if health.http is not None:
        return HealthCheck(kind="http", target=health.http, interval=health.interval, timeout=health.timeout)
    if health.tcp is not None:
        return HealthCheck(kind="tcp", target=str(health.tcp), interval=health.interval, timeout=health.timeout)
    if health.exec is not None:
        return HealthCheck(kind="exec", target=health.exec, interval=health.interval, timeout=health.timeout)
    if health.component:
        return HealthCheck(kind="component", interval=health.interval, timeout=health.timeout)
    return HealthCheck(interval=health.interval, timeout=health.timeout)


def _placement(body: InstanceBody) -> Placement:
    placement = body.placement
    return Placement(
        where=placement.where,
        prefer=tuple(placement.prefer),
        spread=placement.spread,
        strategy=placement.strategy,
        max_per_node=placement.max_per_node,
        rebalance=placement.rebalance,
    )


def _update(body: InstanceBody) -> UpdatePolicy:
    update = body.update
    return UpdatePolicy(
        max_parallel=update.max_parallel,
        min_healthy_time=update.min_healthy_time,
        healthy_deadline=update.healthy_deadline,
        progress_deadline=update.longest_standstill,
        canary=update.canary,
        auto_revert=update.auto_revert,
    )
