"""The controller's API: problems with codes, tokens, figures; nothing changes without the leader."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from agent.api import problems
from agent.api.auth import BearerAuth, BodyLimit
from agent.callers import Callers
from agent.clock import SystemClock
from agent.consul.embedded.memory import MemoryConsul
from agent.consul.embedded.store import Store
from agent.errors import Refused
from reconciler.api.backup import backup_routes
from reconciler.api.metrics import metrics_text
from reconciler.api.node_wishes import node_wish_routes
from reconciler.api.rollback import rollback_routes
from reconciler.api.routes import routes
from reconciler.api.suspend import suspend_routes
from reconciler.app import NEEDS
from reconciler.board import Board
from reconciler.edges import Edges
from reconciler.execution.leadership import Leadership
from reconciler.loop import Loop
from reconciler.simulation.network import SimNodes
from reconciler.simulation.source import SimSource
from reconciler.simulation.watchers import LooksAway
from reconciler.wakeups import Wakeups

TOKEN = "cluster-secret"


class NoPackages:
    def package_zip(self, digest: str) -> Path | None:
        return None


class NothingHeld:
    async def accept(self, revision: str) -> str:
        raise Refused("nothing is held", code="NOTHING_TO_ACCEPT")


@pytest.fixture
def app() -> FastAPI:
    """A controller that stands by, behind its API."""
    clock = SystemClock()
    consul = MemoryConsul(Store(now=clock.now))
    nodes = SimNodes({}, "one", clock=clock, random=random.Random(1), listener=LooksAway(), lossy=lambda: 0.0)
    edges = Edges(SimSource(), consul, nodes, clock, lambda digest: digest)
    leadership = Leadership("c", "one", "http://one:1", consul=consul, clock=clock)
    loop = Loop("c", edges, leadership, Board("c", clock), Wakeups())
    made = FastAPI()
    problems.install(made)
    made.include_router(routes(loop, NoPackages(), nodes, clock, "repo main"))
    made.include_router(backup_routes(loop))
    made.include_router(suspend_routes(loop, NothingHeld()))
    made.include_router(rollback_routes(loop, clock))
    made.include_router(node_wish_routes(loop, loop.node_wishes))
    made.add_middleware(BodyLimit, limit=1000)
    made.add_middleware(BearerAuth, callers=Callers(lambda: TOKEN), needs=NEEDS)
    return made


async def ask(app: FastAPI, method: str, path: str, *, token: str = TOKEN, **more: object) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://c") as client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return await client.request(method, f"/api/master{path}", headers=headers, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", "/plan", None, 503, "NOT_READY"),
        ("GET", "/observed", None, 503, "NOT_READY"),
        ("GET", "/explain/web", None, 503, "NOT_READY"),
        ("GET", "/plan?form=xml", None, 422, "INVALID"),
        ("GET", "/nodes/a", None, 404, "NOT_FOUND"),
        ("GET", "/nope", None, 404, "NOT_FOUND"),
        ("GET", "/replicas/web.0/logs", None, 404, "NOT_FOUND"),
        ("GET", "/replicas/web.0/logs?lines=0", None, 422, "INVALID"),
        ("GET", f"/packages/{'0' * 64}", None, 404, "PACKAGE_MISSING"),
        ("GET", "/packages/..%2f..%2fetc", None, 404, "NOT_FOUND"),
        ("GET", "/events?after=-1", None, 422, "INVALID"),
        ("POST", "/sync", None, 409, "NOT_LEADING"),
        ("POST", "/approvals", {"changes": [], "plan": "x"}, 409, "NOT_LEADING"),
        ("POST", "/approvals", {"changes": [], "plan": "x", "more": 1}, 422, "INVALID"),
        ("POST", "/approvals", ["nonsense"], 422, "INVALID"),
        ("POST", "/approvals", "x" * 2000, 413, "BODY_TOO_LARGE"),
        ("PUT", "/nodes/a/cordon", {"who": "ann"}, 409, "NOT_LEADING"),
        ("PUT", "/nodes/a/cordon", {}, 422, "INVALID"),
        ("PUT", "/nodes/a/cordon", {"who": "ann", "drain": True, "within": -1}, 422, "INVALID"),
        ("PUT", "/nodes/a/lock", {"who": "x" * 101}, 422, "INVALID"),
        ("DELETE", "/nodes/a/cordon", None, 409, "NOT_LEADING"),
        ("DELETE", "/nodes/a/lock", None, 409, "NOT_LEADING"),
        ("GET", "/rollback", None, 409, "NOT_LEADING"),
        ("GET", "/rollback?to=", None, 422, "INVALID"),
        ("GET", "/rollback?to=a%20b", None, 422, "INVALID"),
        ("POST", "/rollback", {"who": "ann"}, 409, "NOT_LEADING"),
        ("POST", "/rollback", {}, 422, "INVALID"),
        ("POST", "/rollback", {"who": "ann", "to": "--upload-pack\n"}, 422, "INVALID"),
        ("POST", "/rollback", {"who": "ann", "instance": "web"}, 422, "INVALID"),
        ("DELETE", "/rollback", None, 409, "NOT_LEADING"),
        ("POST", "/restore", {}, 409, "NOT_LEADING"),
        ("POST", "/restore", [], 422, "INVALID"),
        ("POST", "/restore", {"keys": "x" * 2000}, 413, "BODY_TOO_LARGE"),
        ("PUT", "/suspend", {"who": "ann"}, 409, "NOT_LEADING"),
        ("PUT", "/suspend", {"who": "ann", "instance": "../x"}, 422, "INVALID"),
        ("PUT", "/suspend", {"who": ""}, 422, "INVALID"),
        ("DELETE", "/suspend", None, 409, "NOT_LEADING"),
        ("DELETE", "/suspend?instance=A", None, 422, "INVALID"),
        ("POST", "/accept", {"commit": "abcdef0"}, 409, "NOT_LEADING"),
        ("POST", "/accept", {"commit": "main"}, 422, "INVALID"),
        ("POST", "/history", None, 405, "METHOD_NOT_ALLOWED"),
        ("DELETE", "/status", None, 405, "METHOD_NOT_ALLOWED"),
    ],
)
async def test_every_wrong_request_is_a_problem(
    app: FastAPI, method: str, path: str, body: object, status: int, code: str
) -> None:
    answer = await ask(app, method, path, json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "path", ["", "/status", "/plan", "/packages/x", "/events", "/history", "/rollback", "/backup", "/replicas/x/logs"]
)
async def test_nothing_is_told_without_a_token(app: FastAPI, path: str) -> None:
    for token in ("", "wrong"):
        answer = await ask(app, "GET", path, token=token)
        assert (answer.status_code, answer.json()["code"]) == (401, "UNAUTHORIZED")


async def test_the_cluster_is_let_in(app: FastAPI) -> None:
    answer = await ask(app, "GET", "/status")
    assert answer.status_code == 200
    assert answer.json()["leading"] is False


async def test_waiting_for_events_ends(app: FastAPI) -> None:
    async with asyncio.timeout(5):
        answer = await ask(app, "GET", "/events?wait=0.05")
    assert json.loads(answer.text) == {"items": []}


def test_figures_of_a_controller_that_stands_by() -> None:
    text = metrics_text(Board("c", SystemClock())).decode()
    assert "tdie_controller_leading 0.0" in text
    assert "tdie_controller_epoch" not in text
