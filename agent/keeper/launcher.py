"""The zygote as the keeper sees it: a child that forks hosts, replaced whenever it dies."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from agent.keeper import linux
from agent.keeper.environment import HANDED_DOWN, RESERVE, ROOM, environment
from agent.keeper.handover import KeptZygote
from agent.keeper.loop import READ, Loop
from agent.keeper.protocol import HostOrder

LONGEST_PAUSE = 5.0
AT_ONCE = 1000  # launches in one message to a zygote, which reads none while it starts: few hundred messages have room


def start_cold(order: HostOrder, request: Mapping[str, object], descriptors: Mapping[str, int]) -> int:
    """The pid of a new host process in the packages' own environment, our child. OSError when it cannot be started.

    It has the same descriptors as a forked one, from 3 on in the order of `kinds`, and its markers from its first moment.
    """
    kinds = [kind for kind in descriptors if kind != "log"]
    words = json.dumps({**request, "kinds": kinds, "libraries": sysconfig.get_path("purelib")})
    command = [order.python, "-I", "-X", "utf8", str(Path(__file__).parent.parent / "host" / "cold.py"), words]
    with contextlib.ExitStack() as given:
        high = {}
        for kind, descriptor in descriptors.items():  # above where they go, so that none is overwritten before its turn
            high[kind] = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 64)
            given.callback(os.close, high[kind])
        actions: list[tuple[int, int, int]] = [(os.POSIX_SPAWN_DUP2, high["log"], number) for number in (1, 2)]
        actions += [(os.POSIX_SPAWN_DUP2, high[kind], number) for number, kind in enumerate(kinds, start=3)]
        nowhere = given.enter_context(open(os.devnull, "rb"))
        env = environment(order, str(request["launch"]), str(request["keeper"]))
        actions.append((os.POSIX_SPAWN_DUP2, nowhere.fileno(), 0))
        return os.posix_spawn(order.python, command, env, file_actions=actions, setsid=True, setsigmask=())


class Launcher:
    """Hands launches to the zygote. `failed(launch, error)` is called for each one it could not fork."""

    def __init__(
        self, loop: Loop, failed: Callable[[str, str], None], began: Callable[[int], None] = lambda _pid: None
    ) -> None:
        """`began(pid)` is called for each zygote before it forks anything."""
        self._loop, self._failed, self._began = loop, failed, began
        self._socket: socket.socket | None = None
        self._former: tuple[int, socket.socket | None] | None = None  # of the image before us, until there is another
        self._pause = 0.0
        self._started = 0.0
        self._stopping = False
        self.guarded: set[str] = set()  # launches that end with this keeper
        self.pid: int | None = None
        self.generation = 0
        self.ready = False

    def start(self) -> None:
        """A zygote is on its way; launches may be handed over at once."""
        if self._stopping:
            return
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        env = {name: os.environ[name] for name in HANDED_DOWN if name in os.environ} | {RESERVE: "-" * ROOM}
        command = [sys.executable, "-I", "-X", "utf8", "-m", "agent.zygote"]
        with its:
            actions = [(os.POSIX_SPAWN_DUP2, its.fileno(), 0)]
            try:
                self.pid = os.posix_spawn(
                    sys.executable, command, env, file_actions=actions, setsid=True, setsigmask=()
                )
            except OSError:
                ours.close()
                self._again()
                return
        with contextlib.suppress(OSError):  # it ended at once, or its limits cannot hold: that is said of the sandbox
            self._began(self.pid)
        self.generation += 1
        self._started = linux.now()
        self._connect(ours)
        guarded = sorted(self.guarded)
        for first in range(0, len(guarded), AT_ONCE):
            self._tell({"guards": guarded[first : first + AT_ONCE]})
        if self._former is not None:
            os.kill(self._former[0], signal.SIGKILL)  # our own child, not reaped yet

    def hand_over(self) -> KeptZygote:
        """The zygote and what it was told."""
        pid, held = self._former if self.pid is None and self._former is not None else (self.pid, self._socket)
        descriptor = None if held is None else held.fileno()
        return KeptZygote(pid, descriptor, self.generation, tuple(sorted(self.guarded)))

    def resume(self, kept: KeptZygote) -> None:
        """The zygote of the image before us forks nothing any more: one with our code takes its place.

        It ends once the next one was told what to guard, so that there is always one that ends this when we are gone. It is held
        until it is reaped: left alone it would take the keeper for gone.
        """
        self.generation, self.guarded = kept.generation, set(kept.guarded)
        if kept.pid is not None:
            self._former = kept.pid, None if kept.descriptor is None else socket.socket(fileno=kept.descriptor)
        self._loop.soon(self.start)

    def _connect(self, ours: socket.socket) -> None:
        ours.setblocking(False)
        self._socket, self.ready = ours, False
        self._loop.watch(ours.fileno(), READ, self._hear)

    def guard(self, launch: str, guarded: bool) -> None:
        """When this keeper is gone, the zygote kills what belongs to this launch, or does not any more."""
        if guarded == (launch in self.guarded):
            return
        if guarded:
            self.guarded.add(launch)
        else:
            self.guarded.discard(launch)
        self._tell({"guard" if guarded else "unguard": launch})

    def _tell(self, said: Mapping[str, object]) -> None:
        """A zygote that cannot be told now is replaced: the next one is told everything at its start."""
        told = self._former[1] if self._socket is None and self._former is not None else self._socket
        if told is None:
            return
        try:
            told.send(json.dumps(said).encode())
        except OSError:
            self.replace()

    def launch(self, request: Mapping[str, object], descriptors: Sequence[int]) -> bool:
        """The request is handed over with its descriptors; False when there is no zygote that can take it now."""
        if self._socket is None:
            return False
        try:
            socket.send_fds(self._socket, [json.dumps(request).encode()], list(descriptors))
        except OSError:
            return False
        return True

    def replace(self) -> None:
        """The zygote is ended; a new one follows when it is reaped."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)  # our own child, not reaped yet: the pid cannot be another's

    def reaped(self, pid: int) -> bool:
        """Whether this ended child was the zygote; then a new one is on its way."""
        if self._former is not None and pid == self._former[0]:
            self._forget_former()
        if pid != self.pid:
            return False
        self.pid = None
        self._disconnect()
        self._again()
        return True

    def stop(self) -> None:
        """The zygote ends by itself because nobody talks to it any more."""
        self._stopping = True
        self._disconnect()
        self._forget_former()

    def _forget_former(self) -> None:
        if self._former is not None and self._former[1] is not None:
            self._former[1].close()
        self._former = None

    def _again(self) -> None:
        brief = linux.now() - self._started < 1.0
        self._pause = min(LONGEST_PAUSE, max(0.1, self._pause * 2)) if brief else 0.0
        self._loop.at(linux.now() + self._pause, self.start)

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._loop.ignore(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _hear(self) -> None:
        if self._socket is None:
            return
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._disconnect()
            self.replace()  # it is dying or of no use; SIGCHLD says when it is gone
            return
        told = json.loads(data)
        self.ready = self.ready or "ready" in told
        if "launch" in told:
            self._failed(told["launch"], told["error"])
