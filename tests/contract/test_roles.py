"""Every route of the three APIs × every identity: who may not is refused before anything is read, and changes nothing.

tests/golden/roles.txt lists the routes with the least role of each; TDIE_REWRITE=1 writes what is there now.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.types import ASGIApp
from structlog.testing import capture_logs

from agent.api import node_api
from agent.api.auth import OPEN_PATHS, BearerAuth
from agent.bus.bus import Bus
from agent.bus.routes import Routes as BusRoutes
from agent.bus.store import ThreadStore
from agent.bus.values import Limits
from agent.callers import PEOPLE, Callers, Needs, Person, Role, hashed
from agent.client import NodeClient
from agent.clock import SystemClock
from agent.consul.embedded.memory import MemoryConsul
from agent.consul.embedded.store import Store
from agent.host import api as host_api
from agent.host.host import Host
from agent.host.operations import BASE, operations
from agent.keeper.protocol import Code, HostOrder
from reconciler import app as controller
from reconciler.board import Board
from reconciler.edges import Edges
from reconciler.execution.leadership import Leadership
from reconciler.loop import Loop
from reconciler.source.source import GitSource
from reconciler.wakeups import Wakeups
from tests.agent.test_node_api_http import Running

GOLDEN = Path(__file__).parents[1] / "golden" / "roles.txt"
FAR, PAST = date(2999, 1, 1), date(2020, 1, 1)
TOKEN = "the cluster's"
KNOWN = [
    *(Person(f"one-{role}", role, hashed(str(role)), FAR) for role in PEOPLE),
    Person("late", Role.ADMIN, hashed("expired"), PAST),
]
IDENTITIES: dict[str, tuple[str, Role | None]] = {  # name -> header, and the role it has
    "none": ("", None),
    "wrong": ("Bearer nobody's", None),
    "basic": (f"Basic {TOKEN}", None),
    "hash": (f"Bearer {hashed('admin')}", None),
    "expired": ("Bearer expired", None),
    **{str(role): (f"Bearer {role}", role) for role in PEOPLE},
    "cluster": (f"Bearer {TOKEN}", Role.CLUSTER),
}
Routes = list[tuple[str, str]]


@dataclass
class Api:
    """One API with what may not change when somebody is refused."""

    name: str
    app: ASGIApp
    routes: Routes  # method, template
    needs: Needs
    state: Callable[[], object]


def callers() -> Callers:
    return Callers(lambda: TOKEN, lambda: KNOWN, lambda: datetime(2026, 11, 25, tzinfo=UTC))


def _of(app: FastAPI) -> Routes:
    found = [
        route for each in app.routes for route in getattr(getattr(each, "original_router", None), "routes", [each])
    ]
    routes = [(method, r.path) for r in found if isinstance(r, APIRoute) for method in sorted(r.methods or ())]
    return [*routes, ("GET", "/openapi.json")]


@asynccontextmanager
async def _node(folder: Path) -> AsyncIterator[Api]:
    made = Running(folder)
    files = node_api.NodeFiles(folder, lambda digest: b"")
    store = ThreadStore(folder / "bus.sqlite")
    bus = Bus(Limits(), store=store, clock=SystemClock(), routes=BusRoutes(), problem=lambda code, text: None)
    await bus.open(lambda lane: None)
    app = node_api.node_app(made.agent, files, made.packages, callers(), bus)
    try:
        yield Api("node", app, _of(app), node_api.NEEDS, lambda: made.agent.book.whole().model_copy(update={"at": 0.0}))
    finally:
        made.socket.close()
        await store.close()
        await made.http.aclose()


@asynccontextmanager
async def _controller(folder: Path) -> AsyncIterator[Api]:
    clock = SystemClock()
    store = Store(now=clock.now)
    consul = MemoryConsul(store)
    source = GitSource(str(folder), mirror_dir=folder / "mirror", cache_dir=folder / "cache")
    nodes = NodeClient()
    leadership = Leadership("c", "one", "http://one:1", consul=consul, clock=clock)
    loop = Loop("c", Edges(source, consul, nodes, clock, str), leadership, Board("c", clock), Wakeups())
    app = controller.build_api(loop, source, nodes, clock, "repo main", callers())
    try:
        yield Api("controller", app, _of(app), controller.NEEDS, lambda: (store.index, sorted(os.listdir(folder))))
    finally:
        await source.close()
        await nodes.close()


HOST_CODE = """
from agent.sdk import Component
class Part(Component):
    async def start(self):
        pass
"""


@asynccontextmanager
async def _host(folder: Path) -> AsyncIterator[Api]:
    module = f"tdie_test_roles_{folder.name}"
    (folder / f"{module}.py").write_text(HOST_CODE)
    for name, text in (("token", TOKEN), ("people", "\n".join(str(person) for person in KNOWN))):
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)
    env = {"TDIE_API_TOKEN_FILE": str(folder / "token"), "TDIE_API_PEOPLE_FILE": str(folder / "people")}
    code = Code("parts", "1.0.0", "d", str(folder), f"{module}:Part")
    host = Host(replace(HostOrder("a.0", "a", "n", "s", "python", code), env=env), lambda: None)
    before, ended = list(sys.path), asyncio.Event()
    await host.start()
    own = operations(host, ended.set, "")
    routes = [(op.method, BASE + op.path) for op in own] + [("GET", p) for p in ("/openapi.json", "/docs", "/metrics")]
    try:
        yield Api(
            "host",
            host_api.application(host, ended.set),
            routes,
            host_api.NEEDS,
            lambda: (host.status(), ended.is_set()),
        )
    finally:
        await host.destroy()
        sys.path[:] = before
        sys.modules.pop(module, None)


MAKERS = {"node": _node, "controller": _controller, "host": _host}


@pytest.fixture(params=list(MAKERS))
async def api(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Api]:
    async with MAKERS[request.param](tmp_path) as made:
        yield made


def _guarded(routes: Routes) -> Iterator[tuple[str, str]]:
    for method, template in routes:
        if template not in OPEN_PATHS and method != "HEAD":
            yield method, template


def _least() -> dict[tuple[str, str, str], str]:
    lines = (line.split() for line in GOLDEN.read_text().splitlines() if line and not line.startswith("#"))
    return {(name, method, path): role for name, method, path, role in lines}


async def test_the_list_of_routes_is_whole(api: Api) -> None:
    """A new route appears here with the role it asks for, and somebody reads that."""
    now = {(api.name, m, path): str(api.needs.role(m, path)) for m, path in _guarded(api.routes)}
    known = _least()
    if os.environ.get("TDIE_REWRITE") == "1":
        known = {key: role for key, role in known.items() if key[0] != api.name} | now
        lines = [" ".join((*key, role)) for key, role in sorted(known.items())]
        GOLDEN.write_text("# API, method, path, and the least role that may call it.\n" + "\n".join(lines) + "\n")
    assert {key: role for key, role in known.items() if key[0] == api.name} == now
    routes = {f"{method} {path}" for method, path in api.routes}
    assert set(api.needs.listed) <= routes, "a listed route is not there"


async def test_whoever_may_not_is_refused_and_changes_nothing(api: Api) -> None:
    least, before = _least(), api.state()
    transport = httpx.ASGITransport(api.app, raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=transport, base_url="http://it") as client:
        for method, template in _guarded(api.routes):
            path = re.sub(r"{[^}]+}", "x", template)
            needed = next(role for role in Role if str(role) == least[api.name, method, template])
            for identity, (header, role) in IDENTITIES.items():
                if role is not None and role >= needed:
                    continue
                headers = {"Authorization": header} if header else {}
                with capture_logs() as logged:
                    answer = await client.request(method, path, headers=headers, content=b'{"deep": ' + b"[" * 100)
                said = (answer.status_code, answer.json()["code"], answer.headers["content-type"])
                status, code = (401, "UNAUTHORIZED") if role is None else (403, "ROLE_TOO_LOW")
                code = "TOKEN_EXPIRED" if identity == "expired" else code
                assert said == (status, code, "application/problem+json"), (method, path, identity)
                assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
                if api.name != "host":  # a host logs by the standard library
                    assert [line["code"] for line in logged if line["event"] == "refused"] == [code]
    assert api.state() == before


async def test_whoever_may_is_let_in_and_people_are_written_down(api: Api) -> None:
    reached: list[str] = []

    async def inner(scope: Any, _receive: Any, send: Any) -> None:
        reached.append(f"{scope['method']} {scope['path']}")
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    least = _least()
    guarded = BearerAuth(inner, callers=callers(), needs=api.needs)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(guarded), base_url="http://it") as client:
        for method, template in _guarded(api.routes):
            path = re.sub(r"{[^}]+}", "x", template)
            needed = next(role for role in Role if str(role) == least[api.name, method, template])
            for header, role in IDENTITIES.values():
                if role is None or role < needed:
                    continue
                with capture_logs() as logged:
                    await client.request(method, path, headers={"Authorization": header})
                assert reached.pop() == f"{method} {path}"
                told = [(line["who"], line["what"], line["status"]) for line in logged if line["event"] == "called"]
                audited = method != "GET" and role is not Role.CLUSTER
                assert told == ([(f"one-{role}", f"{method} {path}", 204)] if audited else [])
    assert not reached


async def test_any_code_of_the_machine_is_loaded_for_admins_only(tmp_path: Path) -> None:
    async with _host(tmp_path) as api:
        transport = httpx.ASGITransport(api.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://it") as client:
            path = f"{BASE}/services/component/parts/init"
            body = {"packageName": "parts", "assemblyPath": "/nowhere", "fullyQualifiedClassName": "a:B"}
            codes = {}
            for role in ("operator", "admin"):
                answer = await client.put(path, json=body, headers={"Authorization": f"Bearer {role}"})
                codes[role] = answer.json()["code"]
    assert codes["operator"] == "ROLE_TOO_LOW"
    assert codes["admin"] != "ROLE_TOO_LOW"


async def test_health_is_open_and_tells_nothing_else(api: Api) -> None:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api.app), base_url="http://it") as client:
        for path in sorted(OPEN_PATHS):
            assert (await client.get(path)).status_code in (200, 503)
            assert len((await client.get(path)).content) < 200
