"""Composition root of the controller: settings → real edges → one loop and one API, until told to stop."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress

import structlog
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, Response

from agent import __version__
from agent.api import problems
from agent.api.auth import BearerAuth, BodyLimit
from agent.api.described import describe
from agent.api.logged import logged_as
from agent.api.uploads import MULTIPART_EXTRA
from agent.callers import Callers, Needs, Role, people_file
from agent.client import NodeClient
from agent.clock import SystemClock
from agent.consul.address import Address
from agent.consul.client import ConsulClient
from agent.correlation import Correlated
from agent.errors import TdieError
from agent.serving import Server
from agent.tokens import TokenFile, check_bind
from reconciler.api.backup import backup_routes
from reconciler.api.messages import message_routes
from reconciler.api.metrics import metrics_text
from reconciler.api.node_wishes import node_wish_routes
from reconciler.api.rollback import rollback_routes
from reconciler.api.routes import routes
from reconciler.api.suspend import suspend_routes
from reconciler.api.uploads import LARGEST, upload_routes
from reconciler.api.uploads import PATH as UPLOADS
from reconciler.board import Board
from reconciler.copies import Copies
from reconciler.edges import Edges
from reconciler.execution.leadership import Leadership
from reconciler.loop import Loop
from reconciler.settings import ControllerSettings
from reconciler.source.access import Access
from reconciler.source.source import GitSource
from reconciler.wakeups import Wakeups

log = structlog.get_logger("controller")

PORTS = 200  # how many ports above the wished one are tried
GRACE = 3  # seconds for open requests when stopping
MAX_BODY = 16 << 20  # bytes
NEEDS = Needs(
    {
        f"POST {UPLOADS}": Role.ADMIN,
        "GET /api/master/backup": Role.ADMIN,
        "POST /api/master/restore": Role.ADMIN,
    }
)

Token = Callable[[], str]


async def run_controller(settings: ControllerSettings, told: asyncio.Event | None = None) -> None:
    """One controller runs until it is told to stop; then it gives up leadership at once and leaves the fleet alone.

    Without `told`, SIGTERM and SIGINT tell it.
    """
    clock = SystemClock()
    token: Token = TokenFile(settings.token_file) if settings.token_file else str
    callers = Callers(token, people_file(settings.people_file)) if settings.people_file else Callers(token)
    check_bind(settings.bind, settings.token_file is not None)
    listener = _listen(settings.bind, settings.port)
    api = f"http://{_advertised(settings)}:{listener.getsockname()[1]}"
    consul = ConsulClient.from_environ(
        os.environ, address=_consul_address(settings), token_file=settings.consul_token_file
    )
    nodes = NodeClient(token=token)
    copies = Copies(settings.cluster, api, consul=consul, token=token)
    source = GitSource(
        settings.repository,
        settings.ref,
        subdir=settings.subdir,
        mirror_dir=settings.data / "mirror",
        cache_dir=settings.data / "packages",
        cluster_name=settings.cluster,
        by_digest=copies.fetch,
        interval=settings.sync_interval,
        access=Access(
            home=settings.git_home,
            ssh_key=settings.ssh_key,
            token_file=settings.git_token_file,
            ca_file=settings.git_ca_file,
        ),
    )
    board, wakeups = Board(settings.cluster, clock), Wakeups()
    leadership = Leadership(settings.cluster, settings.name, api, consul=consul, clock=clock, ttl=settings.beat_ttl)
    edges = Edges(source, consul, nodes, clock, lambda digest: f"{api}/api/master/packages/{digest}")
    loop = Loop(
        settings.cluster, edges, leadership, board, wakeups, agent_ttl=settings.agent_ttl, once_healthy=freeze_heap
    )
    app = build_api(loop, source, nodes, clock, f"{source.shown_url} {settings.ref}", callers)
    log.info("controller started", api=api, cluster=settings.cluster, consul=str(_consul_address(settings)))
    try:
        await _until_told(loop, app, listener, copies.run(source.copy), told or _signals())
    finally:
        with suppress(TdieError):  # Consul drops the entry with our check otherwise
            await leadership.withdraw()
        await source.close()
        await copies.close()
        await nodes.close()
        await consul.close()


def build_api(
    loop: Loop, source: GitSource, nodes: NodeClient, clock: SystemClock, git: str, callers: Callers
) -> FastAPI:
    """The controller's HTTP app; each request is admitted by `callers` and `NEEDS`."""
    app = FastAPI(title="tdie controller", version=__version__, docs_url=None, redoc_url=None)
    problems.install(app)
    app.include_router(routes(loop, source, nodes, clock, git))
    app.include_router(rollback_routes(loop, clock))
    app.include_router(backup_routes(loop))
    app.include_router(suspend_routes(loop, source))
    app.include_router(upload_routes(loop, source))
    app.include_router(message_routes(loop.board, nodes))
    app.include_router(node_wish_routes(loop, loop.node_wishes))

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(metrics_text(loop.board), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/livez")
    async def livez() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, object]:
        return {"status": "ok", "leading": loop.board.term is not None}

    describe(app, NEEDS)
    app.add_middleware(BodyLimit, limit=MAX_BODY, uploads={UPLOADS: LARGEST + MULTIPART_EXTRA})
    app.add_middleware(BearerAuth, callers=callers, needs=NEEDS)
    app.add_middleware(Correlated, entered=logged_as)
    return app


def freeze_heap() -> None:
    """What is there now stays: the collector looking through it again and again would hold up everything for a moment."""
    gc.collect()
    gc.freeze()


def _signals() -> asyncio.Event:
    """Set by SIGTERM and SIGINT."""
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    return told


async def _until_told(
    loop: Loop, app: FastAPI, listener: socket.socket, copying: Coroutine[None, None, None], told: asyncio.Event
) -> None:
    """Serve, reconcile and copy uploads until told to stop."""
    server = Server(app, grace=GRACE)
    with suppress(asyncio.CancelledError):
        async with asyncio.TaskGroup() as tasks:
            work = [
                tasks.create_task(server.serve(sockets=[listener]), name="api"),
                tasks.create_task(loop.run(), name="loop"),
                tasks.create_task(copying, name="copy uploads"),
            ]
            await told.wait()
            log.info("stopping; the fleet goes on without this controller")
            server.should_exit = True
            loop.board.close()
            for task in work[1:]:
                task.cancel()


def _listen(bind: str, port: int) -> socket.socket:
    """A listening socket on this port, or on the next free one."""
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    last: OSError | None = None
    for candidate in range(port, port + PORTS) if port else (0,):
        # asyncio turns Nagle's algorithm off only for sockets that name their protocol: answers would wait 40 ms for an ACK.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((bind, candidate))
        except OSError as error:
            listener.close()
            last = error
            continue
        listener.listen(1024)
        listener.setblocking(False)
        return listener
    raise TdieError(f"no free port from {port} on {bind}: {last}", code="PORT_IN_USE") from last


def _advertised(settings: ControllerSettings) -> str:
    host = settings.advertise or settings.bind
    if host in ("0.0.0.0", "::"):
        raise TdieError(
            "others cannot reach an unspecified address", code="ADVERTISE_NEEDED", hint="say which with --advertise"
        )
    return f"[{host}]" if ":" in host else host


def _consul_address(settings: ControllerSettings) -> Address:
    return Address.from_environ(os.environ, settings.consul)
