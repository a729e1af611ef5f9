"""PUBLIC: settings over a package's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.errors import Invalid

MAX_DEPTH = 32  # of mappings and lists within each other, as in documents


def overlaid(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Both mappings as one: mappings within each other are merged, anything else of `over` replaces."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = overlaid(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def check_depth(value: Any) -> None:
    """Raises Invalid (TOO_DEEP) for what is nested deeper than documents may be."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise Invalid(f"nested deeper than {MAX_DEPTH} levels", code="TOO_DEEP")
        inner = [
            item.values() if isinstance(item, Mapping) else item for item in level if isinstance(item, Mapping | list)
        ]
        level = [item for items in inner for item in items]


def check_keys(schema: Mapping[str, Any] | None, settings: Mapping[str, Any], *, whole: bool = True) -> None:
    """Raises Invalid for a setting the package does not know, and, when these are all, for one that it needs.

    Controllers check settings by the whole schema; a node, which has no library for that, checks what people get wrong most.
    """
    known = schema.get("properties") if schema else None
    if schema is None or not isinstance(known, Mapping):
        return
    closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
    if closed and (unknown := sorted(set(settings) - set(known))):
        raise Invalid(
            f"the package knows no setting '{unknown[0][:100]}'; it knows {', '.join(sorted(known)) or 'none'}",
            code="SETTING_UNKNOWN",
        )
    required = schema.get("required")
    if whole and isinstance(required, list) and (lacking := [key for key in required if key not in settings]):
        raise Invalid(f"the setting '{lacking[0]}' is missing", code="SETTING_MISSING")
