"""What every test may use: free ports, Consul servers that are known to be ours, and a check for forgotten tasks."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import structlog

from agent.consul.process import dev_command, embedded_command, free_ports

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # tests share a few modules

from tests import servers  # noqa: E402 - found only now
from tests.disk_trouble import NO_SMALL_DISK  # noqa: E402 - found only now

REQUIRED = os.environ.get("TDIE_REQUIRE_CONSUL") == "1"
NO_CONSUL = "NO REAL CONSUL: run .ci/consul, put consul on PATH or set TDIE_CONSUL"


def consul_binary() -> Path | None:
    """The real Consul to test with: TDIE_CONSUL, the one on PATH, or what .ci/consul fetched."""
    candidates = (os.environ.get("TDIE_CONSUL"), shutil.which("consul"), str(ROOT / ".cache/consul/usr/bin/consul"))
    return next((Path(each) for each in candidates if each and os.access(each, os.X_OK)), None)


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """A test that sets logs up writes to its own captured stream, which is closed afterwards: nobody else may."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long go first, so that no worker ends long after the others."""
    items.sort(key=lambda item: not (item.get_closest_marker("e2e") or "sim" in item.path.parts))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("consul") and consul_binary() is None:
        if REQUIRED:
            pytest.fail(NO_CONSUL, pytrace=False)
        pytest.skip(NO_CONSUL)
    servers.setup(item)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [str(each.longrepr) for each in terminalreporter.stats.get("skipped", [])]
    for reason in (
        NO_CONSUL,
        NO_SMALL_DISK,
        *(f"NO {program.upper()}: install {debian}" for program, debian in servers.SERVERS.items()),
    ):
        count = sum(reason in text for text in skipped)
        if count:
            terminalreporter.write_sep("!", f"{count} tests were LEFT OUT: {reason}", red=True, bold=True)


@dataclass
class ConsulServer:
    """One server of ours on loopback; `http` is what belongs into CONSUL_HTTP_ADDR."""

    kind: str
    node: str
    port: int
    command: Sequence[str]
    log: Path
    binary: Path | None = None
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def http(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """It runs, has a leader, and is the one that was started (by its node name)."""
        self.launch()
        assert self.process is not None
        deadline = time.monotonic() + 20
        while not self._ready():
            assert self.process.poll() is None, f"{self.kind} ended: {self.log.read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"{self.kind} is not ready: {self.log.read_text()[-2000:]}"
            time.sleep(0.02)

    def launch(self) -> None:
        """It runs; how far it got is for others to see."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("CONSUL_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=environ)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.http}/v1/agent/self", timeout=2) as answer:
                assert f'"{self.node}"' in answer.read().decode(), "another Consul answers on this port"
            # A leader alone is not enough: sessions are refused until the node is in the catalog.
            with urllib.request.urlopen(f"http://{self.http}/v1/catalog/nodes?consistent", timeout=2) as answer:
                return f'"{self.node}"' in answer.read().decode()
        except (urllib.error.URLError, OSError):
            return False

    def stop(self, *, kill: bool = False) -> None:
        if self.process is None:
            return
        if kill:
            self.process.kill()
        else:
            self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        self.process = None


def make_embedded(folder: Path) -> ConsulServer:
    """An embedded server that keeps its data in the folder; not started."""
    (port,) = free_ports(1)
    node = f"embedded-{port}"
    command = [*embedded_command(folder / "consul.db", port, node), "--session-ttl-min", "1"]
    return ConsulServer("embedded", node, port, command, folder / "embedded.log", consul_binary())


def make_real(folder: Path) -> ConsulServer:
    """A real Consul in dev mode (it keeps nothing); not started."""
    binary = consul_binary()
    if binary is None:
        (pytest.fail if REQUIRED else pytest.skip)(NO_CONSUL)
    (port,) = free_ports(1)
    node = f"real-{port}"
    command = [*dev_command(binary, port, node), '-hcl=session_ttl_min="1s"']
    return ConsulServer("real", node, port, command, folder / "consul.log", binary)


@pytest.fixture(scope="session")
def consul_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulServer]:
    """A running embedded Consul, shared: use keys and names of your own."""
    server = make_embedded(tmp_path_factory.mktemp("embedded"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def real_consul(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulServer]:
    """A running real Consul, shared: use keys and names of your own, and mark the test `consul`."""
    server = make_real(tmp_path_factory.mktemp("real"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def make_consul() -> Callable[[str, Path], ConsulServer]:
    """Makes a server of one's own, `embedded` or `real`, with its files in a folder; not started."""
    return lambda kind, folder: {"embedded": make_embedded, "real": make_real}[kind](folder)


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Gives a port of 127.0.0.1 that nobody listens on, another one each time."""
    return lambda: free_ports(1)[0]


@pytest.fixture(autouse=True)
def _every_task_ends(request: pytest.FixtureRequest) -> None:
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("_no_task_is_left")


@pytest.fixture
async def _no_task_is_left() -> AsyncIterator[None]:
    """A task that outlives its test belongs to nobody: the test fails. Set up first, so checked last."""
    before = asyncio.all_tasks()
    yield
    loop = asyncio.get_running_loop()
    deadline = loop.time() + 1.0
    while left := asyncio.all_tasks() - before - {asyncio.current_task()}:
        if loop.time() > deadline:
            pytest.fail(f"tasks left behind: {sorted(task.get_name() for task in left if task)}", pytrace=False)
        await asyncio.sleep(0.01)
