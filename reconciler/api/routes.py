"""The routes below /api/master. Reading needs any token of ours; asking for something needs the operator's or the cluster's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Protocol

import structlog
from fastapi import APIRouter, Query
from fastapi.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from pydantic.alias_generators import to_camel

from agent.client import NodeApi
from agent.clock import Clock
from agent.errors import Missing, TdieError, Waiting
from reconciler import answers
from reconciler.board import Board
from reconciler.execution.approvals import approve, must_be_lost, promoted
from reconciler.execution.proven import NotLeading
from reconciler.loop import Loop
from reconciler.model.desired import DesiredState
from reconciler.model.observed import ObservedState, Presence
from reconciler.planning import render

log = structlog.get_logger("controller")

OBSERVED = TypeAdapter(ObservedState)
DESIRED = TypeAdapter(DesiredState)


class PackageSource(Protocol):
    """Where the bytes of packages are."""

    def package_zip(self, digest: str) -> Path | None: ...


class Named(BaseModel):
    """One change that a person has seen."""

    model_config = ConfigDict(extra="forbid")
    id: str = Field(max_length=64)
    replica: str = Field(max_length=200)


class Approval(BaseModel):
    """What a person approves: exactly the changes of a plan that was shown."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, populate_by_name=True)
    changes: list[Named] = Field(max_length=100_000)
    plan: str = Field(max_length=64)
    only: list[Annotated[str, Field(max_length=64)]] | None = Field(default=None, max_length=100_000)
    """Ids of the changes seen that may run; all of them when not given. What was approved before stays approved then."""
    who: str = Field(default="operator", min_length=1, max_length=100)
    confirm_prune: bool = False
    confirm_lost: bool = False


def routes(loop: Loop, packages: PackageSource, nodes: NodeApi, clock: Clock, git: str) -> APIRouter:
    """All routes of one controller."""
    board = loop.board
    router = APIRouter(prefix="/api/master")

    @router.get("")
    async def summary() -> dict[str, Any]:
        """The cluster in a few lines, and where to ask for the rest."""
        doc = answers.status(board, git, clock.now())
        kinds = ("status", "plan", "nodes", "instances", "replicas", "packages", "events", "history")
        return {
            "cluster": board.cluster,
            "leading": doc["leading"],
            "epoch": doc["epoch"],
            "commit": doc["git"]["commit"],
            "converged": doc["converged"],
            "links": {kind: f"/api/master/{kind}" for kind in kinds},
        }

    @router.get("/status")
    async def status() -> dict[str, Any]:
        return answers.status(board, git, clock.now())

    @router.get("/plan")
    async def plan(form: Annotated[str, Query(pattern="^(json|text|markdown)$")] = "json") -> dict[str, Any]:
        """The plan of the last cycle: all changes of all waves, and the holds."""
        current = board.plan
        if current is None:
            raise not_ready(board)
        if form == "json":
            return render.document(current)
        text = render.text(current) if form == "text" else render.markdown(current)
        return {"text": text, "digest": current.digest}

    @router.get("/observed")
    async def observed(desired: bool = False) -> dict[str, Any]:
        """The fleet as last seen, for planning elsewhere (`tdie plan` of what is not pushed yet), and what is in force if asked."""
        if board.observed is None:
            raise not_ready(board)
        found = {"now": clock.now(), "observed": OBSERVED.dump_python(board.observed, mode="json")}
        if not desired:
            return found
        if board.desired is None:
            raise not_ready(board)
        return {**found, "desired": DESIRED.dump_python(board.desired, mode="json")}

    @router.get("/nodes")
    async def all_nodes() -> dict[str, Any]:
        return {"items": answers.status(board, git, clock.now())["nodes"]}

    @router.get("/nodes/{name}")
    async def one_node(name: str) -> dict[str, Any]:
        view = board.observed.nodes.get(name) if board.observed else None
        if view is None:
            raise Missing(f"no node is called {name}")
        return answers.node(view, board.desired, clock.now())

    @router.get("/instances")
    async def all_instances() -> dict[str, Any]:
        return {"items": answers.status(board, git, clock.now())["instances"]}

    @router.get("/replicas")
    async def all_replicas() -> dict[str, Any]:
        rows = answers.status(board, git, clock.now())["instances"]
        return {"items": [replica for row in rows for replica in row["replicas"]]}

    @router.get("/replicas/{name}/logs", response_class=PlainTextResponse)
    async def logs(name: str, lines: Annotated[int, Query(ge=1, le=10_000)] = 100, follow: bool = False) -> Response:
        """The last lines of a replica, fetched from its node; with `follow` also those to come."""
        for view in board.observed.nodes.values() if board.observed else ():
            if (name in view.replicas or name in view.by_hand) and view.presence is Presence.ALIVE:
                if follow:
                    text = "text/plain; charset=utf-8"
                    return StreamingResponse(_to_its_end(nodes.follow_logs(view.api, name, lines)), media_type=text)
                return PlainTextResponse(await nodes.logs(view.api, name, lines))
        raise Missing(f"no replica is called {name} on a node that answers")

    @router.get("/packages")
    async def all_packages() -> dict[str, Any]:
        return {"items": answers.packages(board.desired, board.observed)}

    @router.get("/packages/{digest}")
    async def package(digest: str) -> FileResponse:
        """The package with this content digest, as a zip."""
        path = packages.package_zip(digest)
        if path is None:
            raise Missing(f"no package has the digest {digest[:64]}", code="PACKAGE_MISSING")
        log.info("package served", digest=digest[:12])
        return FileResponse(path, media_type="application/zip")

    @router.get("/explain/{subject}")
    async def explain(subject: str) -> dict[str, Any]:
        if board.plan is None:
            raise not_ready(board)
        doc = answers.explain(board, subject, clock.now())
        if not doc.get("known"):
            raise Missing(f"nothing is called {subject}", hint="name an instance, a replica or a node")
        return doc

    @router.get("/events")
    async def events(
        after: Annotated[int, Query(ge=0)] = 0, wait: Annotated[float, Query(ge=0, le=60)] = 0
    ) -> dict[str, Any]:
        """Events with a higher number than `after`; waits up to `wait` seconds for the first."""
        if not (found := _after(board, after)) and wait and not board.closed:
            woken = asyncio.Event()
            stop = board.listen(woken.set)
            try:
                async with asyncio.timeout(wait):
                    while not (found := _after(board, after)) and not board.closed:
                        await woken.wait()
                        woken.clear()
            except TimeoutError:
                found = []
            finally:
                stop()
        return {"items": found}

    @router.post("/sync")
    async def sync() -> dict[str, Any]:
        """Look at Git and the fleet now."""
        must_lead(board)
        loop.look()
        return {"asked": True}

    @router.post("/approvals")
    async def approvals(approval: Approval) -> dict[str, Any]:
        """These changes may run, if they still are what the person saw."""
        term = must_lead(board)
        if board.plan is None:
            raise not_ready(board)
        if approval.confirm_lost:
            must_be_lost(board.plan, loop.planned_with)
        seen = {named.id: named.replica for named in approval.changes}
        ids = approve(board.plan, seen)
        if approval.only is not None:
            still = {change.id for change in board.plan.changes} & loop.planned_with.approved
            ids = (ids & set(approval.only)) | still
        go_on = promoted(board.plan, ids)
        prune, lost = board.plan.prune_digest, board.plan.lost_digest
        with loop.changing_record() as record:
            await record.approve(ids, approval.who, term.session, promoted=go_on)
            if approval.confirm_prune:
                await record.confirm_prune(prune, approval.who, term.session)
            if approval.confirm_lost:
                await record.confirm_lost(lost, approval.who, term.session)
        return {"approved": len(ids), "plan": board.plan.digest, "promoted": sorted(go_on)}

    return router


def _after(board: Board, number: int) -> list[dict[str, Any]]:
    return [asdict(event) for event in list(board.events) if event.number > number]


def must_lead(board: Board) -> Any:
    """The term; NotLeading when this controller does not lead."""
    if board.term is None:
        raise NotLeading
    return board.term


def not_ready(board: Board) -> Waiting:
    """What to answer before the first plan."""
    why = board.error or "no plan has been made yet"
    return Waiting(why, code="NOT_READY", hint="try again in a moment")


async def _to_its_end(log: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A log as it comes; when its node goes away, that is its last line, because nothing else can be said any more."""
    try:
        async for piece in log:
            yield piece
    except TdieError as error:
        yield f"\n{error}\n".encode()
