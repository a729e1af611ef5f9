"""The routes by which people take a backup of what lives in Consul, and bring it back."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from reconciler.api.routes import must_lead
from reconciler.loop import Loop


def backup_routes(loop: Loop) -> APIRouter:
    router = APIRouter(prefix="/api/master", tags=["backup"])

    @router.get("/backup")
    async def backup() -> dict[str, Any]:
        """The record and the epoch of this cluster; locks, leases and presence are not part of it."""
        return await loop.backup()

    @router.post("/restore")
    async def restore(doc: dict[str, Any]) -> dict[str, Any]:
        """The record is as in this backup; then this leadership ends, so that the next one reads all of it anew."""
        return asdict(await loop.restore(doc, must_lead(loop.board)))

    return router
