"""What an agent asks of the packages on its machine."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from agent.wire import PackageOrder, PackageRef


@dataclass(frozen=True, slots=True)
class Installed:
    """A package that is completely on this machine and whose digest was verified."""

    package: PackageRef
    content_root: str  # absolute
    runtime: Literal["python", "exec"] = "python"
    component_type: str = ""
    command: tuple[str, ...] = ()  # exec only, with placeholders
    dependencies: tuple[str, ...] = ()  # PEP 508; they are fulfilled by an environment of its own
    installed_at: float = 0.0  # orders installations; wall clock seconds, never used as a duration


class Installer(Protocol):
    """The packages of one machine. The simulator keeps them in memory."""

    def installed(self) -> Mapping[str, Installed]:
        """What is installed now, by digest; a package with dependencies counts once its environment is made too."""
        ...

    def environments(self) -> Mapping[str, str]:
        """The interpreter of each environment, by its name (`environment_of`)."""
        ...

    async def install(self, order: PackageOrder) -> Installed:
        """The package is installed; fetched only if it was not. Raises TdieError (PKG_…, DISK_FULL); nothing half-done stays."""
        ...

    async def prepare(self, digests: Collection[str]) -> None:
        """The environment in which these installed packages run together is there. Raises TdieError (PKG_DEPENDENCY)."""
        ...

    def collectable(self, in_use: Collection[str], keep: int | None) -> tuple[str, ...]:
        """Digests that may be removed: the machine's retention policy, or `keep` versions of each name when that is given."""
        ...

    def manual(self) -> frozenset[str]:
        """Digests that were uploaded at this machine by hand."""
        ...

    async def good(self, digests: Collection[str]) -> None:
        """Replicas that run these are healthy: the last two such versions of a package are kept for a rollback."""
        ...

    async def verify(self) -> Mapping[str, str]:
        """Every package was read again: digest → what is wrong with it. A damaged one counts as not installed until healed."""
        ...

    async def remove(self, digest: str) -> None:
        """Gone afterwards, also if it was not there."""
        ...
