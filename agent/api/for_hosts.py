"""What the hosts of this node may ask their agent, on a socket that only its own user reaches: its packages."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from agent.api import problems
from agent.api.auth import BodyLimit
from agent.api.packages import NodePackages, package_routes
from agent.api.uploads import MULTIPART_EXTRA
from agent.correlation import Correlated
from agent.keeper.listener import listen_at
from agent.packages.names import kebab_case

MAX_BODY = 1 << 20


class Asked(BaseModel):
    """A package that a host is to load, and settings over its defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict)


def app_for_hosts(packages: NodePackages) -> FastAPI:
    """The package operations, and what it takes to load one."""
    app = FastAPI(title="tdie node, for its hosts", docs_url=None, redoc_url=None, openapi_url=None)
    problems.install(app)
    app.include_router(package_routes(packages))

    @app.put("/api/node/packages/{package_name}/resolved")
    async def resolved(package_name: str, asked: Asked) -> dict[str, Any]:
        """Where the class of a package is, and its settings."""
        found, settings = await packages.configured(kebab_case(package_name), asked.version, asked.settings)
        python = packages.installer.environments().get(found.package.digest, "") if found.dependencies else ""
        return {
            "name": found.package.name,
            "version": found.package.version,
            "digest": found.package.digest,
            "contentRoot": found.content_root,
            "componentType": found.component_type,
            "runtime": found.runtime,
            "settings": settings,
            "python": python,
        }

    largest = packages.store.limits.archive + MULTIPART_EXTRA
    app.add_middleware(BodyLimit, limit=MAX_BODY, uploads={"/api/node/packages": largest})
    app.add_middleware(Correlated)
    return app


@contextmanager
def listening_for_hosts(path: Path) -> Iterator[socket.socket]:
    """A listening socket at this path for this user alone; the file is gone afterwards."""
    with listen_at(path) as listener:  # also where an agent that was killed left one: the data folder is ours
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)
