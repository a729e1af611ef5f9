"""The node API's packages: what people upload, update, list and delete at one machine by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from agent.api.uploads import BODY, receive
from agent.errors import TdieError
from agent.node import Agent
from agent.packages.install import PackageInstaller
from agent.packages.manager import PackageManager
from agent.packages.names import kebab_case
from agent.packages.protocol import Installed
from agent.packages.records import PackageRecords
from agent.packages.settings import check_depth, check_keys, overlaid
from agent.packages.store import PackageStore
from agent.steps import in_use


@dataclass(frozen=True, slots=True)
class NodePackages:
    """The packages of this machine, by hand: each change is known to the agent when it is answered."""

    agent: Agent
    store: PackageStore
    records: PackageRecords
    installer: PackageInstaller
    manager: PackageManager
    one_at_a_time: asyncio.Lock = field(default_factory=asyncio.Lock)  # what is here decides what may come

    async def upload(self, request: Request, take: Callable[[Path], Installed]) -> dict[str, Any]:
        """The uploaded package is installed with its dependencies; a failed one leaves everything as it was."""
        before = self.store.installed().keys()
        with self.store.partial() as folder:
            file = await receive(request, folder, self.store.limits.archive)
            async with self.one_at_a_time:
                found = await asyncio.to_thread(take, file)
        digest = found.package.digest
        try:
            if found.dependencies:
                await self.installer.prepare((digest,))
        except TdieError:
            if digest not in before:
                await self.installer.remove(digest)
            raise
        await self._changed()
        return await asyncio.to_thread(self.manager.configuration, found.package.name)

    async def delete(self, name: str, version: str | None) -> dict[str, Any]:
        """What nothing runs and nothing orders is gone."""
        used = in_use(self.agent.assignment, self.agent.table.rows.values())
        gone = await asyncio.to_thread(self.manager.delete, name, version, used)
        for package in gone:
            await self.installer.remove(package.digest)
        await self._changed()
        return {"deleted": [str(package) for package in gone]}

    async def configured(
        self, name: str, version: str | None, given: Mapping[str, Any], *, whole: bool = True
    ) -> tuple[Installed, dict[str, Any]]:
        """A package that is here, and settings over its defaults; `whole` when no more will be given.

        Missing (PKG_UNKNOWN); Invalid (SETTING_UNKNOWN, SETTING_MISSING, TOO_DEEP).
        """
        check_depth(given)
        found = await asyncio.to_thread(self.manager.current, name, version)
        manifest = await asyncio.to_thread(self.store.manifest, found.package.digest)
        settings = overlaid(manifest.default_configuration, given)
        check_keys(manifest.settings_schema, settings, whole=whole)
        return found, settings

    async def _changed(self) -> None:
        self.installer.look_at_records(await asyncio.to_thread(self.records.all))
        self.agent.packages_changed()


def package_routes(packages: NodePackages) -> APIRouter:
    """The operations of the package manager."""
    router = APIRouter(prefix="/api/node/packages", tags=["packages"])

    @router.post("", status_code=201, openapi_extra=BODY)
    async def upload(request: Request, response: Response) -> dict[str, Any]:
        """A package that is not here under any version; 409 PKG_EXISTS otherwise."""
        made = await packages.upload(request, packages.manager.add)
        response.headers["Location"] = f"/api/node/packages/{made['packageName']}/configuration"
        return made

    @router.put("", openapi_extra=BODY)
    async def update(request: Request, rollback: bool = False) -> dict[str, Any]:
        """Another version of a package that is here; a lower one needs `rollback`. The others stay for going back."""
        return await packages.upload(request, lambda file: packages.manager.update(file, rollback=rollback))

    @router.delete("")
    async def delete(
        package_name: Annotated[str, Query(alias="packageName")], version: str | None = None
    ) -> dict[str, Any]:
        """One version, or all, is gone; 409 PKG_IN_USE while something runs it or Git orders it."""
        return await packages.delete(kebab_case(package_name), version)

    @router.get("/configuration")
    async def configurations() -> list[dict[str, Any]]:
        """What every package says of itself, with its versions and where it is."""
        return await asyncio.to_thread(packages.manager.configurations)

    @router.get("/{package_name}/configuration")
    async def configuration(package_name: str) -> dict[str, Any]:
        """What the current version of a package says of itself."""
        return await asyncio.to_thread(packages.manager.configuration, kebab_case(package_name))

    return router
