"""PUBLIC: settings over a package's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def overlaid(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Both mappings as one: mappings within each other are merged, anything else of `over` replaces."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = overlaid(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
