"""The node API's processes: what runs on this machine, for people to see, start and end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import PlainTextResponse, StreamingResponse

from agent import logfiles, machine
from agent.api.following import follow
from agent.api.packages import NodePackages
from agent.api.process_models import Begun, Killed, Process, ProcessStats, StartByHand, Used
from agent.errors import Missing
from agent.node import Agent
from agent.packages.names import kebab_case
from agent.sdk.message import correlation
from agent.steps import is_by_hand
from agent.wire import PublisherSpec, ReplicaSpec, ReplicaStatus, Resources


def process_routes(agent: Agent, packages: NodePackages) -> APIRouter:
    """The process operations of the seed, and logs. What Git orders comes back after a kill, with cause drift."""
    router = APIRouter(prefix="/api/node", tags=["processes"])

    @router.get("/stats/processes")
    async def all_stats() -> list[ProcessStats]:
        """Figures of every process that runs here."""
        return await _stats(_rows(agent))

    @router.get("/stats/processes/{package_name}")
    async def stats(package_name: str) -> list[ProcessStats]:
        """Figures of the processes of one package."""
        return await _stats(await _of_package(agent, packages, package_name))

    @router.get("/processes")
    async def processes() -> list[Process]:
        """Every host here, with what its process uses."""
        return await _shown(_rows(agent))

    @router.put("/processes/kill", status_code=202)
    async def kill_all() -> Killed:
        """All processes on this node are stopped."""
        return await _killed(agent, _rows(agent))

    @router.get("/processes/{package_name}")
    async def of_package(package_name: str) -> list[Process]:
        """The hosts of one package."""
        return await _shown(await _of_package(agent, packages, package_name))

    @router.put("/processes/{package_name}/start", status_code=201)
    async def start(package_name: str, response: Response, body: StartByHand | None = None) -> Begun:
        """One more host of this package, not owned by Git: it stays until somebody ends it, or the cluster prunes all."""
        agent.manual.check_allowed()
        spec = await _spec(packages, kebab_case(package_name), body or StartByHand())
        awaiting = body is not None and not body.auto_start
        row = await agent.manual.start(spec, awaiting=awaiting, correlation_id=correlation.get())
        response.headers["Location"] = f"/api/node/processes/{spec.package.name}/{row.replica}"
        return Begun(
            package_name=spec.package.name,
            package_version=spec.package.version,
            settings_id=row.replica,
            state=row.state,
            pid=row.pid,
            port=row.order.port,
            url=f"http://127.0.0.1:{row.order.port}",
        )

    @router.put("/processes/{package_name}/kill", status_code=202)
    async def kill_package(package_name: str) -> Killed:
        """All processes of one package are stopped."""
        return await _killed(agent, await _of_package(agent, packages, package_name))

    @router.get("/processes/{replica}/logs", response_class=PlainTextResponse)
    async def logs(
        replica: str,
        lines: Annotated[int, Query(ge=1, le=100_000)] = 200,
        follow_on: Annotated[bool, Query(alias="follow")] = False,
    ) -> Response:
        """The last lines of a replica's log; with `follow` also those to come."""
        path = Path(agent.log_path(replica))
        if follow_on:
            return StreamingResponse(follow(path, lines), media_type="text/plain; charset=utf-8")
        return PlainTextResponse(await asyncio.to_thread(logfiles.tail, path, lines))

    @router.get("/processes/{package_name}/{process}")
    async def one(package_name: str, process: str) -> Process | list[Process]:
        """All digits: the process with this id. Anything else is a settings id: its hosts, as a list."""
        shown = await _shown(_find(agent, kebab_case(package_name), process))
        return shown[0] if process.isdecimal() else shown

    @router.put("/processes/{package_name}/{process}/kill", status_code=202)
    async def kill(package_name: str, process: str) -> Killed:
        """One process, by its id or settings id, is stopped."""
        name = kebab_case(package_name)
        if process.isdecimal() and not _with_id(agent, process):
            return Killed(replicas=[await agent.kill_orphan(name, int(process[:12]))])
        return await _killed(agent, _find(agent, name, process))

    return router


async def _spec(packages: NodePackages, name: str, body: StartByHand) -> ReplicaSpec:
    found, settings = await packages.configured(name, body.version, body.settings, whole=body.auto_start)
    publisher = None
    if (given := body.publisher) is not None:
        way, way_settings = await packages.configured(kebab_case(given.package_name), given.version, given.settings)
        publisher = PublisherSpec(package=way.package, settings=way_settings)
    resources = Resources(cpu=body.resources.cpu, memory=body.resources.memory)
    return ReplicaSpec(package=found.package, settings=settings, env=body.env, publisher=publisher, resources=resources)


def _rows(agent: Agent) -> list[ReplicaStatus]:
    rows = {**agent.book.rows, **agent.by_hand}
    return [rows[name] for name in sorted(rows)]


async def _of_package(agent: Agent, packages: NodePackages, given: str) -> list[ReplicaStatus]:
    """Its hosts. Missing (PKG_UNKNOWN) when the package is not here either."""
    name = kebab_case(given)
    found = [row for row in _rows(agent) if row.package.name == name]
    if not found:
        await asyncio.to_thread(packages.manager.current, name)
    return found


def _with_id(agent: Agent, process: str) -> list[ReplicaStatus]:
    return [row for row in _rows(agent) if process == (str(row.pid) if process.isdecimal() else row.replica)]


def _find(agent: Agent, package: str, process: str) -> list[ReplicaStatus]:
    known = _with_id(agent, process)
    found = [row for row in known if row.package.name == package]
    if not found:
        raise Missing(
            f"no process '{process[:100]}' of package '{package[:100]}' on {agent.settings.node}",
            code="PROCESS_UNKNOWN",
        )
    return found


async def _shown(rows: Iterable[ReplicaStatus]) -> list[Process]:
    listed = list(rows)
    used = await asyncio.to_thread(machine.process_figures, [row.pid for row in listed if row.pid])
    return [
        Process(
            **row.model_dump(),
            package_name=row.package.name,
            settings_id=row.replica,
            owner="manual" if is_by_hand(row.replica) else "git",
            used=Used.model_validate(used[row.pid]) if row.pid in used else None,
        )
        for row in listed
    ]


async def _stats(rows: Iterable[ReplicaStatus]) -> list[ProcessStats]:
    shown = await _shown(rows)
    return [
        ProcessStats(
            pid=row.pid,
            package_name=row.package_name,
            settings_id=row.settings_id,
            started_at=row.started_at,
            restarts=row.restarts,
            used=row.used,
        )
        for row in shown
        if row.pid is not None and row.used is not None
    ]


async def _killed(agent: Agent, rows: Iterable[ReplicaStatus]) -> Killed:
    names = [row.replica for row in rows if row.replica in agent.table.rows]
    for ended in await asyncio.gather(*(agent.kill(name) for name in names), return_exceptions=True):
        if isinstance(ended, BaseException) and not isinstance(ended, Missing):  # what is gone meanwhile is stopped
            raise ended
    return Killed(replicas=names)
