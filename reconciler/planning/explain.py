"""Sentences for people: what differs between two specs, with secrets left out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from agent.wire import PackageRef, ReplicaSpec

SECRET_WORDS = ("password", "passwd", "token", "secret", "key", "credential")
SHOWN = 2  # differences spelled out; the rest is counted
_LONGEST = 40  # characters of a value


def differences(old: ReplicaSpec, new: ReplicaSpec) -> str:
    """`package 1.0.0 → 1.1.0, settings.filter: *.xml → *.csv, +2 more`; empty when nothing differs."""
    found = list(_differences(old, new))
    shown = found[:SHOWN]
    if len(found) > SHOWN:
        shown.append(f"+{len(found) - SHOWN} more")
    return ", ".join(shown)


def _differences(old: ReplicaSpec, new: ReplicaSpec) -> Iterator[str]:
    yield from _package("package", old.package, new.package)
    yield from _values("settings", old.settings, new.settings)
    yield from _values("env", old.env, new.env)
    before, after = old.publisher, new.publisher
    if before is not None and after is not None:
        yield from _package("publisher", before.package, after.package)
        yield from _values("publisher.settings", before.settings, after.settings)
    elif before is not None or after is not None:
        yield f"publisher: {before.package if before else _NONE} → {after.package if after else _NONE}"
    if old.subscribe != new.subscribe:
        yield f"subscribe: {_topics(old)} → {_topics(new)}"
    yield from _values("resources", old.resources.model_dump(), new.resources.model_dump())


def _package(what: str, old: PackageRef, new: PackageRef) -> Iterator[str]:
    if old == new:
        return
    if old.name != new.name:
        yield f"{what} {old} → {new}"
    elif old.version != new.version:
        yield f"{what} {old.version} → {new.version}"
    else:
        yield f"{what} {old.version} built anew ({old.digest[:8]} → {new.digest[:8]})"


def _topics(spec: ReplicaSpec) -> str:
    return " ".join(f"{s.topic}/{s.type}" if s.type else s.topic for s in spec.subscribe) or str(_NONE)


class _Nothing:
    def __str__(self) -> str:
        return "(none)"


_NONE = _Nothing()


def _values(path: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key, _NONE), new.get(key, _NONE)
        if before == after and type(before) is type(after):
            continue
        inner = f"{path}.{key}"
        if isinstance(before, Mapping) and isinstance(after, Mapping) and not _secret(key):
            yield from _values(inner, before, after)
        elif _secret(key):
            yield f"{inner}: *** → ***"
        else:
            yield f"{inner}: {_shown(before)} → {_shown(after)}"


def _secret(key: str) -> bool:
    return any(word in key.lower() for word in SECRET_WORDS)


def _shown(value: Any) -> str:
    """A value in one short line; inside a structure, secrets are left out as well."""
    if value is None or value is _NONE:
        return str(_NONE)
    text = value if isinstance(value, str) else json.dumps(_veiled(value), ensure_ascii=False, default=str)
    text = " ".join(text.split()) if text.strip() else '""'
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _veiled(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: "***" if _secret(str(key)) else _veiled(inner) for key, inner in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [_veiled(inner) for inner in value]
    return value


def counted(number: int, one: str, many: str = "") -> str:
    """`1 node`, `3 nodes`."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def listed(names: Iterator[str] | tuple[str, ...] | list[str], most: int = 3) -> str:
    """`a, b, c and 4 more`."""
    all_names = list(names)
    text = ", ".join(all_names[:most])
    return text if len(all_names) <= most else f"{text} and {len(all_names) - most} more"
