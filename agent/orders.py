"""Pure: a replica as ordered → what its keeper needs to run it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from agent.errors import Invalid, Missing
from agent.keeper.protocol import Code, HostOrder, HostRow, Lease
from agent.packages.protocol import Installed
from agent.sdk.message import Subscription
from agent.steps import environment
from agent.wire import Assignment, PackageRef, ReplicaOrder

_PLACEHOLDER = re.compile(r"\{(settings\.[^{}\s]+|port)\}")


def host_order(
    order: ReplicaOrder,
    *,
    node: str,
    port: int,
    log: str,
    installed: Mapping[str, Installed],
    environments: Mapping[str, str],
    correlation_id: str = "",
    data: str = "",
    bus: str = "",
    lease: Lease | None = None,
) -> HostOrder:
    """Everything the keeper needs. Raises Missing (PACKAGE_MISSING, ENVIRONMENT_MISSING) or Invalid (COMMAND_PLACEHOLDER)."""
    spec, policy = order.spec, order.policy
    package = _installed(spec.package, installed)
    publisher = spec.publisher
    interval, timeout = policy.health.of_component
    return HostOrder(
        replica=order.replica,
        instance=order.instance,
        node=node,
        spec_hash=order.spec_hash,
        runtime=package.runtime,
        component=_code(package, spec.settings),
        publisher=_code(_installed(publisher.package, installed), publisher.settings) if publisher else None,
        subscriptions=tuple((s.topic, s.type) for s in spec.subscribe),
        bus=bus,
        command=tuple(filled(part, spec.settings, port) for part in package.command),
        env=dict(spec.env),
        port=port,
        log=log,
        cpu=spec.resources.cpu,
        memory=spec.resources.memory,
        stop_grace=policy.stop_grace,
        restart_attempts=policy.restart.attempts,
        restart_interval=policy.restart.interval,
        restart_delay=policy.restart.delay,
        restart_mode=policy.restart.mode,
        check_interval=interval,
        check_timeout=timeout,
        correlation_id=correlation_id,
        data=data,
        python=_python(environment(order, installed), environments),
        lease=lease,
    )


def subscriptions_of(assignment: Assignment | None) -> dict[str, tuple[Subscription, ...]]:
    """What the instances of an assignment subscribe to; those that do not are left out."""
    found: dict[str, tuple[Subscription, ...]] = {}
    for order in assignment.replicas if assignment else ():
        if order.spec.subscribe:
            wanted = (Subscription(s.topic, s.type) for s in order.spec.subscribe)
            found[order.instance] = tuple(dict.fromkeys((*found.get(order.instance, ()), *wanted)))
    return found


def renamed(row: HostRow, order: ReplicaOrder, log: str, lease: Lease | None = None) -> HostOrder:
    """The order of a running process under another replica's name and lease; what it runs stays as it is."""
    return replace(row.order, replica=order.replica, instance=order.instance, log=log, lease=lease)


def filled(part: str, settings: Mapping[str, Any], port: int) -> str:
    """One word of a command with `{port}` and `{settings.key}` (dots go deeper) filled in; other braces stay."""

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        return str(port) if name == "port" else _text(_setting(name.removeprefix("settings."), settings, part))

    return _PLACEHOLDER.sub(value, part)


def _setting(path: str, settings: Mapping[str, Any], part: str) -> Any:
    found: Any = settings
    for key in path.split("."):
        if not isinstance(found, Mapping) or key not in found:
            raise Invalid(f"'{part}': there is no setting '{path}'", code="COMMAND_PLACEHOLDER")
        found = found[key]
    return found


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _installed(ref: PackageRef, installed: Mapping[str, Installed]) -> Installed:
    if ref.digest not in installed:
        raise Missing(f"{ref} is not installed", code="PACKAGE_MISSING")
    return installed[ref.digest]


def _python(name: str, environments: Mapping[str, str]) -> str:
    if name and name not in environments:
        raise Missing("the environment of its packages is not made yet", code="ENVIRONMENT_MISSING")
    return environments[name] if name else ""


def _code(package: Installed, settings: Mapping[str, Any]) -> Code:
    ref = package.package
    return Code(
        name=ref.name,
        version=ref.version,
        digest=ref.digest,
        content_root=package.content_root,
        component_type=package.component_type,
        settings=dict(settings),
    )
