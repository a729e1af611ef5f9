"""Pure: which installed packages may be deleted."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import groupby

from agent.packages.protocol import Installed

LEAST_KEPT = 2  # versions of each name that a rollback finds on the machine, whatever the setting


def collectable(installed: Mapping[str, Installed], in_use: Collection[str], keep: int = 5) -> tuple[str, ...]:
    """Digests that nothing needs: not in use, and not among the `keep` newest installations of their name (at least 2)."""

    def by_name(item: Installed) -> tuple[str, float, str]:
        return (item.package.name, -item.installed_at, item.package.digest)

    dropped: list[str] = []
    for _, versions in groupby(sorted(installed.values(), key=by_name), key=lambda i: i.package.name):
        dropped += [i.package.digest for i in _beyond(versions, max(LEAST_KEPT, keep))]
    return tuple(digest for digest in dropped if digest not in in_use)


def _beyond(versions: Iterable[Installed], keep: int) -> list[Installed]:
    return list(versions)[keep:]
