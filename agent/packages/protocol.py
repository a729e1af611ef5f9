"""What an agent asks of the packages on its machine."""

from __future__ import annotations

from collections.abc import Mapping
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
    installed_at: float = 0.0  # orders installations; wall clock seconds, never used as a duration


class Installer(Protocol):
    """The packages of one machine. The simulator keeps them in memory."""

    def installed(self) -> Mapping[str, Installed]:
        """What is installed now, by digest."""
        ...

    async def install(self, order: PackageOrder) -> Installed:
        """The package is installed; fetched only if it was not. Raises TdieError (PKG_…, DISK_FULL); nothing half-done stays."""
        ...

    async def remove(self, digest: str) -> None:
        """Gone afterwards, also if it was not there."""
        ...
