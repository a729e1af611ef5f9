"""The node API: what controllers tell an agent, and what people ask it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, FastAPI, Query, Response
from fastapi.responses import PlainTextResponse

from agent import machine
from agent.api import problems
from agent.api.auth import BearerAuth, BodyLimit
from agent.api.described import describe
from agent.api.logged import logged_as
from agent.api.messages import message_routes
from agent.api.metrics import metrics_text
from agent.api.packages import NodePackages, package_routes
from agent.api.processes import process_routes
from agent.api.uploads import MULTIPART_EXTRA
from agent.bus import people
from agent.bus.bus import Bus
from agent.callers import Callers, Needs, Role
from agent.correlation import Correlated
from agent.errors import Invalid, Missing, Waiting
from agent.expiry import Expiry
from agent.leases.peers import PATH as FAILSAFE_ACK
from agent.leases.peers import Ack, Ask
from agent.node import Agent
from agent.wire import Accepted, Assignment, Claim, Claimed, Report

log = structlog.get_logger("api")

MAX_BODY = 64 << 20  # bytes; an assignment of 10,000 replicas has about 10 MB
MAX_WAIT = 120.0  # seconds
NEEDS = Needs(
    {
        "PUT /api/node/leader": Role.CLUSTER,
        "PUT /api/node/assignment": Role.CLUSTER,
        "POST /api/node/messages": Role.CLUSTER,
        f"POST {FAILSAFE_ACK}": Role.CLUSTER,
        "POST /api/node/packages": Role.ADMIN,
        "PUT /api/node/packages": Role.ADMIN,
        "DELETE /api/node/packages": Role.ADMIN,
    }
)
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class NodeFiles:
    """What the API reads from the machine itself."""

    data: Path
    archive: Callable[[str], bytes]  # a package by digest; blocking, raises Missing


def node_app(
    agent: Agent, files: NodeFiles, packages: NodePackages, callers: Callers, bus: Bus | None = None
) -> FastAPI:
    """The application; each request is admitted by `callers` and `NEEDS`."""
    app = FastAPI(title="tdie node API", version=agent.settings.version or "0", docs_url=None, redoc_url=None)
    problems.install(app)
    app.include_router(_commands(agent))
    app.include_router(_between_agents(agent))
    app.include_router(package_routes(packages))
    app.include_router(process_routes(agent, packages))
    app.include_router(_views(agent, files))
    app.include_router(_health(agent, bus))
    if bus is not None:
        app.include_router(message_routes(bus, agent.settings.node))
    describe(app, NEEDS)
    largest = packages.store.limits.archive + MULTIPART_EXTRA
    app.add_middleware(BodyLimit, limit=MAX_BODY, uploads={"/api/node/packages": largest})
    app.add_middleware(BearerAuth, callers=callers, needs=NEEDS)
    app.add_middleware(Correlated, entered=logged_as)
    return app


def _commands(agent: Agent) -> APIRouter:
    router = APIRouter(prefix="/api/node", tags=["controller"])

    @router.put("/leader")
    async def claim(body: Claim) -> Claimed:
        """A controller takes charge of this node; 409 STALE_LEADER when a later one already has."""
        return await agent.claim(body)

    @router.put("/assignment")
    async def assign(
        body: Assignment,
        until: Annotated[float | None, Query(ge=0, allow_inf_nan=False)] = None,
        boot: str = "",
    ) -> Accepted:
        """What this node should have installed and running; answered once it is on disk. 409 EXPIRED from `until` on, in seconds
        on the clock of this machine's `boot`, both as its report shows them."""
        return await agent.assign(body, Expiry(boot, until) if until is not None else None)

    @router.get("/report", response_model=Report)
    async def report(
        index: Annotated[int, Query(ge=0)] = 0,
        wait: str = "0s",
        agent_id: Annotated[str | None, Query(alias="agent")] = None,
    ) -> Response:
        """What is true here: everything, or with `index` and `agent` of an earlier report what changed since."""
        found = await agent.report(index, min(_seconds(wait), MAX_WAIT), agent_id)
        return Response(found.model_dump_json(by_alias=True), media_type="application/json")

    return router


def _between_agents(agent: Agent) -> APIRouter:
    router = APIRouter(tags=["agents"])

    @router.post(FAILSAFE_ACK)
    async def failsafe_ack(body: Ask) -> Ack:
        """The holder of a lease asks, while Consul is away, that this node does not start the replica; 409 when it may run here."""
        return await agent.failsafe_ack(body)

    return router


def _views(agent: Agent, files: NodeFiles) -> APIRouter:
    router = APIRouter(prefix="/api/node", tags=["node"])

    @router.get("/stats")
    async def stats() -> dict[str, Any]:
        """Figures about this machine."""
        settings = agent.settings
        about = {
            "cluster": settings.cluster,
            "node": settings.node,
            "version": settings.version,
            "labels": settings.labels,
        }
        return {**about, **await asyncio.to_thread(machine.figures, files.data), "processes": _processes(agent)}

    @router.get("/packages/{digest}", response_class=Response)
    async def package(digest: str) -> Response:
        """An installed package, for other nodes; they verify its content."""
        if not _DIGEST.fullmatch(digest):
            raise Missing("a package is asked for by its digest, 64 hex digits", code="PACKAGE_MISSING")
        archive = await asyncio.to_thread(files.archive, digest)
        log.info("package served", digest=digest[:12])
        return Response(archive, media_type="application/zip")

    return router


def _health(agent: Agent, bus: Bus | None) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/livez")
    async def livez() -> dict[str, str]:
        """The agent runs."""
        return {"status": "ok"}

    @router.get("/readyz")
    async def readyz() -> dict[str, str]:
        """The agent knows what it accepted and what runs here."""
        if not agent.ready:
            raise Waiting("the ledger or the keeper has not been read yet", code="NOT_READY")
        return {"status": "ok"}

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Figures for Prometheus."""
        rows = list(agent.book.rows.values())
        used = await asyncio.to_thread(machine.process_figures, [row.pid for row in rows if row.pid])
        text = metrics_text(agent.book.whole(), used, people.figures(bus) if bus is not None else None)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _processes(agent: Agent) -> dict[str, Any]:
    """What is recorded of the hosts' processes, and what does not fit together."""
    known, found = agent.processes.recorded, agent.processes.findings
    return {
        "recorded": len(known),
        "orphans": [
            {"pid": seen.identity.pid, "replica": seen.replica, "recorded": seen.identity in known}
            for seen in found.orphans
        ],
        "zombies": [{"pid": zombie.pid, "replica": replica} for zombie, replica in found.zombies],
        "missing": list(found.missing),
    }


def _seconds(text: str) -> float:
    try:
        seconds = float(text.removesuffix("s"))
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds < 1e9:
        raise Invalid(f"wait={text!r} is not a number of seconds such as 55s")
    return seconds
