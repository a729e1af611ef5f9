"""Brokers of others, started by tests on free ports of loopback and ended by them; and what arrives from one."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from agent.sdk import Message, MessagePublisher, Subscription


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
        with suppress(asyncio.CancelledError):
            await work
