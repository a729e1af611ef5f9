"""What is known of the packages on a machine besides their bytes, in one sqlite file: where they came from, and what has run well.

Agent and hosts use the file at once, so each call opens it anew. Nothing in it cannot be found out again: a file that makes no
sense is kept aside and a new one begun.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agent.sqlite_file import transaction
from agent.wire import PackageRef

_SCHEMA = """
    CREATE TABLE IF NOT EXISTS packages (
        digest TEXT PRIMARY KEY, name TEXT NOT NULL, version TEXT NOT NULL, origin TEXT NOT NULL,
        current_at REAL NOT NULL, good_at REAL NOT NULL DEFAULT 0, checked_at REAL NOT NULL DEFAULT 0
    ) STRICT;
"""

Origin = Literal["git", "manual"]


@dataclass(frozen=True, slots=True)
class PackageRecord:
    """One package; times are wall clock seconds that only order, 0 for never."""

    package: PackageRef
    origin: Origin
    current_at: float  # when it last became the version to use
    good_at: float = 0.0  # when a replica that runs it was last seen healthy
    checked_at: float = 0.0  # when its bytes were last found to be what its digest says


class PackageRecords:
    """The file. Blocking for a moment; raises Waiting (STORE_WRITE) when it cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def all(self) -> Mapping[str, PackageRecord]:
        """Every record, by digest."""
        with transaction(self.path, _SCHEMA) as db:
            rows = db.execute("SELECT digest, name, version, origin, current_at, good_at, checked_at FROM packages")
            return {
                digest: PackageRecord(PackageRef(name=name, version=version, digest=digest), origin, *times)
                for digest, name, version, origin, *times in rows
            }

    def put(self, package: PackageRef, origin: Origin, now: float) -> None:
        """The package is the version to use. One that came by hand and from Git belongs to Git."""
        with transaction(self.path, _SCHEMA) as db:
            db.execute(
                "INSERT INTO packages (digest, name, version, origin, current_at) VALUES (?, ?, ?, ?, ?)"
                " ON CONFLICT (digest) DO UPDATE SET current_at = excluded.current_at,"
                " origin = CASE WHEN origin = 'git' THEN 'git' ELSE excluded.origin END",
                (package.digest, package.name, package.version, origin, now),
            )

    def forget(self, digest: str) -> None:
        with transaction(self.path, _SCHEMA) as db:
            db.execute("DELETE FROM packages WHERE digest = ?", (digest,))

    def good(self, digests: Iterable[str], now: float) -> None:
        """Replicas that run these are healthy."""
        self._stamp("good_at", digests, now)

    def checked(self, digests: Iterable[str], now: float) -> None:
        """Their bytes are what their digests say."""
        self._stamp("checked_at", digests, now)

    def _stamp(self, column: str, digests: Iterable[str], now: float) -> None:
        with transaction(self.path, _SCHEMA) as db:
            db.executemany(f"UPDATE packages SET {column} = ? WHERE digest = ?", [(now, digest) for digest in digests])
