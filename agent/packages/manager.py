"""Packages by hand: uploaded, updated under version control, listed and deleted at one machine. Used by agent and hosts."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from semver import Version

from agent.errors import Missing, Refused
from agent.packages.protocol import Installed
from agent.packages.records import PackageRecords
from agent.packages.store import PackageStore
from agent.wire import PackageRef


class PackageManager:
    """The packages of one machine, for people. Blocking: callers use a thread."""

    def __init__(self, store: PackageStore, records: PackageRecords, wall: Callable[[], float]) -> None:
        """`wall` tells the time of day in seconds."""
        self._store, self._records, self._wall = store, records, wall

    def add(self, archive: Path) -> Installed:
        """A package that was not here under any version. Refused (PKG_EXISTS) when it was; nothing is changed then."""

        def new(ref: PackageRef) -> None:
            if held := self._versions(ref.name):
                raise Refused(
                    f"{ref.name} is here already: {_listed(held)}", code="PKG_EXISTS", hint="update it with PUT"
                )

        return self._taken(archive, new)

    def update(self, archive: Path, *, rollback: bool = False) -> Installed:
        """Another version of a package that is here becomes the one to use; the others stay for a rollback.

        Missing (PKG_UNKNOWN) when there is none; Refused: PKG_VERSION_REUSED for other bytes under a version that is here,
        PKG_LOWER_VERSION for one below the current unless `rollback`.
        """

        def follows(ref: PackageRef) -> None:
            held = self._versions(ref.name)
            if not held:
                raise Missing(f"there is no package {ref.name}", code="PKG_UNKNOWN", hint="upload it with POST")
            same = next((item for item in held if item.package.version == ref.version), None)
            if same is not None and same.package.digest != ref.digest:
                raise Refused(f"{ref} is here with other content", code="PKG_VERSION_REUSED", hint="raise the version")
            current = held[0].package.version
            if not rollback and Version.parse(ref.version) < Version.parse(current):
                raise Refused(
                    f"{ref} is below {current}", code="PKG_LOWER_VERSION", hint="say ?rollback=true to go back"
                )

        return self._taken(archive, follows)

    def delete(self, name: str, version: str | None, in_use: Collection[str]) -> tuple[PackageRef, ...]:
        """One version, or all, is gone. Missing (PKG_UNKNOWN); Refused (PKG_IN_USE) naming what runs or is ordered."""
        going = [item for item in self._held(name) if version in (None, item.package.version)]
        if not going:
            raise Missing(f"there is no package {name}@{version}", code="PKG_UNKNOWN")
        if used := [str(item.package) for item in going if item.package.digest in in_use]:
            raise Refused(f"{', '.join(used)} is in use", code="PKG_IN_USE", hint="stop what runs it first")
        for item in going:
            self._store.remove(item.package.digest)
            self._records.forget(item.package.digest)
        return tuple(item.package for item in going)

    def configurations(self) -> list[dict[str, Any]]:
        """The configuration of every package's current version, sorted by name."""
        names = sorted({item.package.name for item in self._store.installed().values()})
        return [self.configuration(name) for name in names]

    def configuration(self, name: str) -> dict[str, Any]:
        """What the current version of a package says of itself, and where it is. Missing (PKG_UNKNOWN)."""
        held = self._held(name)
        current, records = held[0], self._records.all()
        manifest = self._store.manifest(current.package.digest)
        record = records.get(current.package.digest)
        return {
            "packageName": manifest.name,
            "packageVersion": manifest.version,
            "digest": current.package.digest,
            "origin": record.origin if record else "git",
            "versions": [item.package.version for item in held],
            "path": str(self.path(name)),
            "contentRootPath": current.content_root,
            **manifest.model_dump(mode="json", by_alias=True, exclude={"name", "version"}),
        }

    def current(self, name: str, version: str | None = None) -> Installed:
        """The version to use, or a certain one. Missing (PKG_UNKNOWN)."""
        found = next((item for item in self._held(name) if version in (None, item.package.version)), None)
        if found is None:
            raise Missing(f"there is no package {name}@{version}", code="PKG_UNKNOWN")
        return found

    def path(self, name: str) -> Path:
        """The folder of the current version."""
        return (self._store.root / self._held(name)[0].package.digest).absolute()

    def _taken(self, archive: Path, check: Callable[[PackageRef], None]) -> Installed:
        found = self._store.take(archive, check)
        self._records.put(found.package, "manual", self._wall())
        return found

    def _held(self, name: str) -> list[Installed]:
        held = self._versions(name)
        if not held:
            raise Missing(f"there is no package {name}", code="PKG_UNKNOWN")
        return held

    def _versions(self, name: str) -> list[Installed]:
        """Every version that is here, the one that became current last first."""
        self._store.look_again()
        records = self._records.all()
        held = [item for item in self._store.installed().values() if item.package.name == name]

        def age(item: Installed) -> tuple[float, float]:
            record = records.get(item.package.digest)
            return (record.current_at if record else item.installed_at, item.installed_at)

        return sorted(held, key=age, reverse=True)


def _listed(held: list[Installed]) -> str:
    return ", ".join(item.package.version for item in held)
