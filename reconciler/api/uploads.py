"""Uploads to the leader: accepted once on its disk, answered with the content digest that a Package document names."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from fastapi import APIRouter, Request

from agent.api.uploads import BODY, receive
from agent.packages.archive import DEFAULT_LIMITS
from agent.wire import PackageRef
from reconciler.api.routes import must_lead
from reconciler.loop import Loop

PATH = "/api/master/packages"
LARGEST = DEFAULT_LIMITS.archive


class Uploads(Protocol):
    """Where uploaded packages go."""

    def incoming(self) -> AbstractContextManager[Path]: ...

    async def take(self, archive: Path) -> PackageRef: ...


def upload_routes(loop: Loop, uploads: Uploads) -> APIRouter:
    """Uploading, and what was uploaded."""
    router = APIRouter()

    @router.post(PATH, status_code=201, openapi_extra=BODY)
    async def upload(request: Request) -> dict[str, Any]:
        """The package is kept under its digest, and other controllers copy it; the same again changes nothing."""
        term = must_lead(loop.board)
        with uploads.incoming() as folder:
            package = await uploads.take(await receive(request, folder, LARGEST))
        await loop.record.put_upload(package, term.session)
        return {
            "name": package.name,
            "version": package.version,
            "digest": package.digest,
            "document": {
                "apiVersion": "tdie/v1",
                "kind": "Package",
                "metadata": {"name": package.name},
                "spec": {"version": package.version, "source": {"digest": package.digest}},
            },
        }

    @router.get("/api/master/uploads")
    async def uploaded() -> dict[str, Any]:
        """Everything that was uploaded, by digest."""
        return {"items": await loop.record.uploads()}

    return router
