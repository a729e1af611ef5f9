"""How durations, sizes, shares and package references are spelled in documents."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from reconciler.model.desired import Share

SHORTEST = 0.1
NAME = r"[a-z0-9-]{1,63}"
_DURATION = re.compile(r"(?:\d{1,9}(?:\.\d{1,6})?(?:ms|s|m|h|d))+", re.ASCII)
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)(Ki|Mi|Gi|Ti|k|M|G|T)?", re.ASCII)
_FACTORS = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_SHARE = re.compile(r"\d{1,3}%", re.ASCII)


def seconds(value: Any) -> float:
    """Seconds of a duration such as `50s`, `1500ms` or `1h30m`."""
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        raise ValueError(f"expected a duration such as 50s, 10m, 1h or 1500ms, found {shown(value)}")
    return round(sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(value)), 6)


def _not_at_once(value: float) -> float:
    if value < SHORTEST:
        raise ValueError(f"expected at least {SHORTEST * 1000:g}ms")
    return value


def size_in_bytes(value: Any) -> int:
    """Bytes of a size such as `256Mi`, `8Gi`, or of a plain number."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not (match := _SIZE.fullmatch(text)):
        raise ValueError(f"expected a size such as 256Mi or 8Gi, found {shown(value)}")
    number, factor = match[1], _FACTORS[match[2] or ""]
    return int(number) * factor if "." not in number else int(float(number) * factor)


def share(value: Any) -> Share:
    """A count such as `2`, or a percentage such as `20%`."""
    if isinstance(value, str) and _SHARE.fullmatch(value) and int(value[:-1]) <= 100:
        return Share(int(value[:-1]), percent=True)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1_000_000:
        return Share(value)
    raise ValueError(f"expected a count such as 2 or a percentage such as 20%, found {shown(value)}")


def shown(value: Any) -> str:
    """A value as people wrote it, shortened."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        text = f"'{value}'" if value.isprintable() else ascii(value)
    else:
        text = f"the number {value}"
    return text if len(text) <= 80 else f"{text[:77]}…"


Seconds = Annotated[
    float,
    BeforeValidator(seconds),
    WithJsonSchema({"type": "string", "pattern": "^([0-9]+(\\.[0-9]+)?(ms|s|m|h|d))+$", "examples": ["50s", "10m"]}),
]
Rhythm = Annotated[Seconds, AfterValidator(_not_at_once)]
"""Seconds between two looks, or given to one: never so few that looking is all that happens."""
Bytes = Annotated[
    int,
    BeforeValidator(size_in_bytes),
    WithJsonSchema({"type": ["string", "integer"], "pattern": "^[0-9]+(\\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?$"}),
]
CountOrShare = Annotated[
    Any,
    BeforeValidator(share),
    WithJsonSchema({"type": ["string", "integer"], "pattern": "^[0-9]{1,3}%$", "examples": [1, "20%"]}),
]
Name = Annotated[str, Field(pattern=f"^{NAME}$")]
