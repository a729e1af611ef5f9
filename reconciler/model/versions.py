"""Version ranges of packages: exact, `^1.0`, `~1.2`, `>=1 <2`; what satisfies them is semver."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from semver import Version

_PART = re.compile(
    r"(\^|~|>=|<=|>|<|=)?\s*v?(\d{1,9}(?:\.\d{1,9}){0,2})(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?", re.ASCII
)
_BOUNDS = {">=", "<=", ">", "<"}


@dataclass(frozen=True, slots=True)
class Bound:
    """One comparison; a range is all of its bounds."""

    operator: str
    version: Version

    def holds(self, version: Version) -> bool:
        order = version.compare(self.version)
        return {">=": order >= 0, "<=": order <= 0, ">": order > 0, "<": order < 0, "=": order == 0}[self.operator]


Range = tuple[Bound, ...]


@lru_cache(maxsize=4096)
def parse_range(text: str) -> Range:
    """The bounds a range spells; ValueError says what is wrong with it."""
    if text.strip() == "*":
        return ()
    bounds: list[Bound] = []
    at = 0
    stripped = text.strip()
    while at < len(stripped):
        match = _PART.match(stripped, at)
        if match is None or (match.end() < len(stripped) and not stripped[match.end()].isspace()):
            raise ValueError(f"'{text}' is no version or range; write 1.2.0, ^1.2, ~1.2 or >=1.2 <2")
        bounds += _bounds(match[1] or "=", match[2], match[3] or "", text)
        at = match.end()
        while at < len(stripped) and stripped[at].isspace():
            at += 1
    if not bounds:
        raise ValueError("the version is missing; write 1.2.0, ^1.2, ~1.2 or >=1.2 <2")
    return tuple(bounds)


def _bounds(operator: str, numbers: str, prerelease: str, text: str) -> list[Bound]:
    given = [int(part) for part in numbers.split(".")]
    major, minor, patch = [*given, 0, 0][:3]
    low = Version(major, minor, patch, prerelease[1:] or None)
    if operator in _BOUNDS:
        return [Bound(operator, low)]
    if operator == "=":
        if len(given) < 3:
            raise ValueError(f"'{text}' names no single version; write {low} or ~{numbers}")
        return [Bound("=", low)]
    # The first part that may not change: for ^ the leftmost that is not zero, for ~ the second.
    fixed = (
        next((i for i, part in enumerate(given) if part), len(given) - 1) if operator == "^" else min(1, len(given) - 1)
    )
    high = [*given[:fixed], given[fixed] + 1, 0, 0][:3]
    return [Bound(">=", low), Bound("<", Version(*high))]


def best(bounds: Range, versions: Iterable[str]) -> str | None:
    """The highest version within the range, or None. Pre-releases count only where the range names one of the same version."""
    fitting = [version for text in versions if _fits(bounds, version := Version.parse(text))]
    return str(max(fitting)) if fitting else None


def _fits(bounds: Range, version: Version) -> bool:
    if not all(bound.holds(version) for bound in bounds):
        return False
    named = any(b.version.prerelease and b.version.finalize_version() == version.finalize_version() for b in bounds)
    return not version.prerelease or named


def split_reference(text: str) -> tuple[str, Range]:
    """Name and range of `name@1.0.0` or `name@^1.0`; ValueError says what is wrong."""
    name, at, wanted = text.partition("@")
    if not at or not wanted.strip():
        raise ValueError(
            f"'{text}' has no version; write {name or 'name'}@1.0.0 or a range as in {name or 'name'}@^1.0"
        )
    if not re.fullmatch(r"[a-z0-9-]{1,63}", name):
        raise ValueError(f"'{name}' is not a package name: up to 63 of a-z, 0-9 and '-'")
    return name, parse_range(wanted)
