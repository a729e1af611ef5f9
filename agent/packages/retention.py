"""Pure: which installed packages may be deleted."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from itertools import groupby

from agent.errors import Invalid
from agent.packages.protocol import Installed

LEAST_KEPT = 2  # versions of each name that a rollback finds on the machine, whatever the setting
EVERYTHING = 1_000_000
_POLICY = re.compile(r"KeepLast(\d{1,6})Versions?", re.IGNORECASE)


def versions_kept(policy: str) -> int:
    """How many versions `KeepLast5Versions`, `KeepAll` or a plain number keeps. Invalid (CONFIG) for anything else."""
    if policy.lower() == "keepall":
        return EVERYTHING
    found = _POLICY.fullmatch(policy)
    text = found.group(1) if found else policy
    if not text.isdecimal() or not 1 <= int(text) <= EVERYTHING:
        raise Invalid(
            f"'{policy}' is no retention policy", code="CONFIG", hint="KeepLast5Versions, KeepAll, or a number"
        )
    return int(text)


def collectable(
    installed: Mapping[str, Installed],
    in_use: Collection[str],
    keep: int = 5,
    *,
    current: Mapping[str, float] | None = None,
    good: Mapping[str, float] | None = None,
) -> tuple[str, ...]:
    """Digests that nothing needs: not in use, not among the `keep` (at least 2) versions of their name that were current last,
    nor among the last two that have run well.

    `current` and `good` say when a package last became the version to use, and was last seen to run well; seconds.
    """
    at, ran = current or {}, good or {}

    def newest(item: Installed) -> tuple[float, float, str]:
        return (-at.get(item.package.digest, item.installed_at), -item.installed_at, item.package.digest)

    dropped: list[str] = []
    for _, group in groupby(sorted(installed.values(), key=lambda i: i.package.name), key=lambda i: i.package.name):
        versions = sorted(group, key=newest)
        proven = {item.package.digest for item in _last_good(versions, ran)}
        dropped += [i.package.digest for i in versions[max(LEAST_KEPT, keep) :] if i.package.digest not in proven]
    return tuple(digest for digest in dropped if digest not in in_use)


def _last_good(versions: Iterable[Installed], ran: Mapping[str, float]) -> list[Installed]:
    well = [item for item in versions if ran.get(item.package.digest)]
    return sorted(well, key=lambda item: -ran[item.package.digest])[:LEAST_KEPT]
