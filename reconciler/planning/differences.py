"""Pure: what people changed between two desired states, a line each; what it does to a fleet is the plan's business."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from reconciler.model.desired import ClusterSpec, DesiredState, InstanceSpec
from reconciler.planning import explain

_NOT_SHOWN = frozenset({"spec", "spec_hash", "place", "name"})  # the spec is compared by value, the place is no change


def differences(before: DesiredState, after: DesiredState) -> list[str]:
    """`+ instance web: 3 × web@1.0.0`, `~ instance web: replicas: 3 → 5`, `- node c`; empty when nothing differs."""
    return [*_cluster(before.cluster, after.cluster), *_instances(before, after)]


def _cluster(before: ClusterSpec, after: ClusterSpec) -> Iterator[str]:
    for name in sorted(before.nodes.keys() | after.nodes.keys()):
        old, new = before.nodes.get(name), after.nodes.get(name)
        if old is None:
            yield f"+ node {name}"
        elif new is None:
            yield f"- node {name}"
        elif old != new:
            yield f"~ node {name}: {', '.join(_fields(old, new))}"
    rest = [line for line in _fields(before, after) if not line.startswith("nodes")]
    if rest:
        yield f"~ cluster {after.name}: {', '.join(rest)}"


def _instances(before: DesiredState, after: DesiredState) -> Iterator[str]:
    for name in sorted(before.instances.keys() | after.instances.keys()):
        old, new = before.instances.get(name), after.instances.get(name)
        if new is None:
            yield f"- instance {name}"
        elif old is None:
            yield f"+ instance {name}: {_size(new)} {new.spec.package}"
        elif changes := _instance(old, new):
            yield f"~ instance {name}: {', '.join(changes)}"


def _instance(old: InstanceSpec, new: InstanceSpec) -> list[str]:
    spec = explain.differences(old.spec, new.spec) if old.spec_hash != new.spec_hash else ""
    return [*([spec] if spec else []), *_fields(old, new)]


def _size(instance: InstanceSpec) -> str:
    return f"{instance.replicas} ×" if instance.replicas is not None else f"{instance.per_node} per node of"


def _fields(old: Any, new: Any) -> list[str]:
    """`field: old → new` for every field of a frozen value that differs."""
    return [
        f"{field.name}: {_shown(before)} → {_shown(after)}"
        for field in fields(old)
        if field.name not in _NOT_SHOWN and (before := getattr(old, field.name)) != (after := getattr(new, field.name))
    ]


def _shown(value: Any) -> str:
    text = str(value) if value not in (None, "", ()) else "(none)"
    return text if len(text) <= 60 else text[:57] + "…"
