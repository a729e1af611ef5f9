"""The processes of hosts: launched, watched, ended, and proven gone with everything they started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from agent.errors import Refused
from agent.keeper import linux, resources
from agent.keeper.cgroups import Cgroups
from agent.keeper.channel import Channel, Line
from agent.keeper.handover import KeptHosts
from agent.keeper.hosted import Hosted
from agent.keeper.launcher import Launcher, start_cold
from agent.keeper.leftovers import leftovers
from agent.keeper.loop import READ, Loop

WINDOW = 32  # launches on their way at a time: bounds descriptors in flight
LAUNCH_LIMIT = 10.0  # seconds until a zygote that does not fork is replaced
STUCK_AFTER = 5.0  # seconds from SIGKILL until a process counts as unkillable


class Owner(Protocol):
    """Who decides what follows."""

    def began(self, host: Hosted) -> None: ...
    def heard(self, host: Hosted, said: dict[str, Any]) -> None: ...
    def hung_up(self, host: Hosted) -> None: ...
    def failed(self, host: Hosted, code: str, cause: str) -> None: ...
    def gone(self, host: Hosted) -> None: ...
    def stuck(self, host: Hosted, pids: tuple[int, ...]) -> None: ...


class Processes:
    """Knows pids, descriptors and markers; takes no decisions."""

    def __init__(self, loop: Loop, keeper_socket: Path, data: Path, cgroups: Cgroups, owner: Owner) -> None:
        self._loop, self._owner, self.cgroups = loop, owner, cgroups
        self.keeper = linux.keeper_id(data)
        self._cache, self._keeper_socket = str(data / "pycache"), str(keeper_socket)
        self.zygote = Launcher(loop, self._not_forked, cgroups.share)
        self._of_pid: dict[int, Hosted] = {}
        self._waiting: list[Hosted] = []
        self._flying: dict[str, Hosted] = {}
        self._sweeping: set[Hosted] = set()
        self._unproven: set[Hosted] = set()  # ended, and something of it may be left
        self._others: dict[int, Callable[[int], None]] = {}  # children that are neither hosts nor their orphans
        self._busy = self._held = False
        loop.on_signal(signal.SIGCHLD, self.reap)

    # ------------------------------------------------------------------ start

    def launch(self, host: Hosted) -> None:
        """The host will be forked at the end of this turn, once its order is on disk."""
        host.launch, host.on_way, host.own, host.status = os.urandom(8).hex(), True, True, None
        host.cause, host.final, host.host_state, host.killed_at = "", False, "", None
        self._waiting.append(host)

    def cancel(self, host: Hosted) -> bool:
        """Whether the host was not handed to the zygote yet and never will be."""
        if host not in self._waiting:
            return False
        self._waiting.remove(host)
        host.on_way = False
        return True

    def release(self) -> None:
        """As many waiting hosts as fit are handed to the zygote."""
        while not self._held and self._waiting and len(self._flying) < WINDOW:
            host = self._waiting[0]
            try:
                handed = self._hand_over(host)
            except (OSError, Refused) as error:
                self._waiting.pop(0)
                host.on_way = False
                code = error.code if isinstance(error, Refused) else "START_FAILED"
                self._owner.failed(host, code, error.detail if isinstance(error, Refused) else str(error))
                continue
            if not handed:
                self._loop.at(linux.now() + 0.02, self._release_later)
                return
            self._waiting.pop(0)

    def _release_later(self) -> None:
        self._loop.soon(self.release)

    def _hand_over(self, host: Hosted) -> bool:
        order = host.order
        with contextlib.ExitStack() as given:
            log = resources.open_log(order.log)
            given.callback(os.close, log)
            kinds, descriptors = ["log"], [log]
            if order.port and order.runtime == "python":
                address = order.env.get("TDIE_API_ADDRESS", "") if order.env.get("TDIE_API_TOKEN_FILE") else ""
                listener = given.enter_context(resources.listen(order.port, address or resources.LOOPBACK))
                kinds.append("listener")
                descriptors.append(listener.fileno())
            ours, its = socket.socketpair()
            given.enter_context(its)
            kinds.append("channel")
            descriptors.append(its.fileno())
            request: dict[str, Any] = {
                "launch": host.launch,
                "keeper": self.keeper,
                "cache": self._cache,
                "kinds": kinds,
            }
            if group := self.cgroups.prepare(host.launch, order):
                request |= {"group": group, "bounded": self.cgroups.bounds_memory(group)}
            if order.lease is not None:
                request["parent"] = os.getpid()
                self.guard(host)
            if order.python and order.runtime == "python":
                self._start_cold(host, ours, request, dict(zip(kinds, descriptors, strict=True)))
                return True
            if not self.zygote.launch(request, descriptors):
                ours.close()
                return False
        self._flying[host.launch] = host
        self._give_order(host, ours)
        launch, generation = host.launch, self.zygote.generation  # of this flight: a later one is not judged by it
        self._loop.at(linux.now() + LAUNCH_LIMIT, lambda: self._check_flight(host, launch, generation))
        return True

    def _start_cold(
        self, host: Hosted, ours: socket.socket, request: dict[str, Any], descriptors: dict[str, int]
    ) -> None:
        """A process of its own instead of a fork: its pid is known at once, so it is never under way."""
        try:
            pid = start_cold(host.order, request, descriptors)
        except OSError as error:
            ours.close()
            raise Refused(f"{host.order.python}: {error.strerror}", code="START_FAILED") from error
        self._give_order(host, ours)
        self._landed(host, pid)

    def _give_order(self, host: Hosted, connection: socket.socket) -> None:
        self.connect(host, connection)
        assert host.channel is not None
        host.channel.write(f'{{"order":{host.order_text},"socket":{json.dumps(self._keeper_socket)}}}\n'.encode())

    def connect(self, host: Hosted, connection: socket.socket, line: Line | None = None) -> None:
        """What the host says from now on comes through this socket."""
        channel: Channel

        def hear(said: dict[str, Any]) -> None:
            if host.channel is channel:
                self._hear(host, said)

        def ended() -> None:
            if host.channel is channel:
                host.channel = None
                self._hung_up(host)

        channel = Channel(self._loop, connection, hear, ended, line)
        host.channel = channel

    def _hear(self, host: Hosted, said: dict[str, Any]) -> None:
        if host.on_way and isinstance(pid := said.get("pid"), int):
            self._landed(host, pid)
        else:
            self._owner.heard(host, said)

    def _landed(self, host: Hosted, pid: int) -> None:
        seen = linux.stat(pid)
        if seen is None:
            return
        self._flying.pop(host.launch, None)
        host.on_way, host.pid, host.start_time = False, pid, seen.start_time
        host.descriptor = os.pidfd_open(pid)  # our child, not reaped yet
        self._of_pid[pid] = host
        self._loop.soon(self.release)
        self._owner.began(host)

    def _hung_up(self, host: Hosted) -> None:
        if not host.on_way:
            self._owner.hung_up(host)
            return
        # no pid was announced: either the zygote died with the request, or the host died at once
        launch = host.launch
        self._loop.at(linux.now() + 0.02, lambda: self._never_landed(host, launch))

    def _never_landed(self, host: Hosted, launch: str) -> None:
        if self._flying.pop(launch, None) is host and host.on_way and host.launch == launch:
            host.on_way = False
            self._owner.failed(host, "START_LOST", "")

    def _not_forked(self, launch: str, error: str) -> None:
        host = self._flying.pop(launch, None)
        if host is not None and host.on_way:
            host.on_way = False
            self.hang_up(host)
            self._owner.failed(host, "START_FAILED", f"cannot fork: {error}")

    def _check_flight(self, host: Hosted, launch: str, generation: int) -> None:
        if self._flying.get(launch) is host and self.zygote.generation == generation:
            self.zygote.replace()

    # ------------------------------------------------------------------ from image to image

    def hold(self, held: bool) -> None:
        """Whether launches wait, whatever room there is."""
        self._held = held
        if not held:
            self._loop.soon(self.release)

    @property
    def quiet(self) -> bool:
        """Whether no launch is on its way."""
        return not self._flying

    def await_child(self, pid: int, ended: Callable[[int], None]) -> None:
        """`ended` is called with the wait status of this child of ours, which is no host."""
        self._others[pid] = ended

    def waiting(self) -> tuple[str, ...]:
        """Replicas that are to be launched."""
        return tuple(host.order.replica for host in self._waiting)

    def unproven(self, host: Hosted) -> bool:
        """Whether it ended, and something of it may be left."""
        return host in self._unproven

    def resume(self, hosts: Mapping[str, Hosted], kept: KeptHosts) -> None:
        """These processes are watched as the image before us did; children that ended meanwhile are reaped."""
        self.zygote.resume(kept.zygote)
        for each in kept.hosts:
            host = each.host
            if each.line is not None:
                self.connect(host, socket.socket(fileno=each.line.descriptor), each.line)
            if host.pid is None:
                continue
            self._of_pid[host.pid] = host
            if not host.own and host.descriptor is not None:
                self._loop.watch(host.descriptor, READ, lambda host=host: self._exited(host, None))  # type: ignore[misc]
            if host.killed_at is not None:
                self._expect_dead(host, host.killed_at)
        self._waiting = [hosts[replica] for replica in kept.waiting]
        for replica in kept.swept:
            self.sweep(hosts[replica])
        self._loop.soon(self.reap)
        self._loop.soon(self.release)

    # ------------------------------------------------------------------ take over

    def take_over(self, host: Hosted, seen: linux.Stat) -> bool:
        """Whether a living process that is not our child is watched from now on."""
        descriptor = linux.hold(seen.pid, seen.start_time)
        if descriptor is None:
            return False
        host.pid, host.start_time, host.own, host.on_way = seen.pid, seen.start_time, False, False
        host.descriptor = descriptor
        self._of_pid[seen.pid] = host
        self._loop.watch(descriptor, READ, lambda: self._exited(host, None))
        return True

    def guard(self, host: Hosted) -> None:
        """What is under a lease does not outlive this keeper, whatever processes it made of itself."""
        if host.launch:
            self.zygote.guard(host.launch, host.order.lease is not None)

    def of_pid(self, pid: int) -> Hosted | None:
        return self._of_pid.get(pid)

    # ------------------------------------------------------------------ end

    def signal(self, host: Hosted, number: int) -> None:
        """The host's process group gets the signal; only the process itself when it is not our child."""
        if host.pid is None or host.descriptor is None:
            return
        if host.own:  # not reaped, so the group id is still its own
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(host.pid, number)
        linux.send(host.descriptor, number)

    def kill(self, host: Hosted) -> None:
        """SIGKILL to everything of the host; `stuck` is told when that does not help."""
        host.killed_at = host.killed_at or linux.now()
        self.signal(host, signal.SIGKILL)
        self.cgroups.kill(host.launch)
        self._expect_dead(host, linux.now())

    def _expect_dead(self, host: Hosted, since: float) -> None:
        launch = host.launch
        self._loop.at(since + STUCK_AFTER, lambda: self._check_dead(host, launch))

    def hang_up(self, host: Hosted) -> None:
        if host.channel is not None:
            channel, host.channel = host.channel, None
            channel.close()

    def reap(self) -> None:
        """Every ended child is reaped: hosts, the zygote, and orphans of hosts."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            pid = ended.si_pid
            if pid not in self._of_pid and self._flying:
                for flying in list(self._flying.values()):
                    if flying.channel is not None:
                        flying.channel.pump()  # its pid may be in there
            host = self._of_pid.get(pid)
            if host is not None:
                if host.channel is not None:
                    host.channel.pump()  # the last words
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(pid, signal.SIGKILL)  # as long as it is not reaped, the group id is its own
            _, status = os.waitpid(pid, 0)
            if host is not None:
                self._exited(host, status)
            elif (ended_other := self._others.pop(pid, None)) is not None:
                ended_other(status)
            else:
                self.zygote.reaped(pid)

    def _exited(self, host: Hosted, status: int | None) -> None:
        if host.channel is not None:
            host.channel.pump()
        self.hang_up(host)
        if host.descriptor is not None:
            self._loop.ignore(host.descriptor)
            os.close(host.descriptor)
            host.descriptor = None
        if host.pid is not None:
            self._of_pid.pop(host.pid, None)
            host.ended = (host.pid, linux.now())
        host.pid = host.start_time = None
        host.status = status
        if not host.cause and self.cgroups.killed_for_memory(host.launch):
            host.cause = f"OOMKilled limit={(host.order.memory or 0) >> 20}Mi"
        self.sweep(host)

    def sweep(self, host: Hosted) -> None:
        """What the host left behind is killed; `gone` is told when nothing is left."""
        self._sweeping.add(host)
        self._unproven.add(host)
        if not self._busy:
            self._busy = True
            self._loop.soon(self._sweep)

    def _sweep(self) -> None:
        self._busy = False
        hosts, self._sweeping = self._sweeping, set()
        left = leftovers(hosts, self._of_pid, self.zygote.pid, self.cgroups, self.keeper)
        for host in hosts:
            if not (mine := left.get(host, [])):
                host.killed_at = None
                self._unproven.discard(host)
                self.zygote.guard(host.launch, False)
                self.cgroups.remove(host.launch)
                self._owner.gone(host)
                continue
            host.killed_at = host.killed_at or linux.now()
            self.cgroups.kill(host.launch)
            for process in mine:
                linux.send_to(process, signal.SIGKILL)
            waited = linux.now() - host.killed_at
            if waited > STUCK_AFTER:
                self._owner.stuck(host, tuple(process.pid for process in mine))
            self._loop.at(linux.now() + min(1.0, 0.005 + waited / 4), lambda host=host: self.sweep(host))  # type: ignore[misc]

    def _check_dead(self, host: Hosted, launch: str) -> None:
        if host.pid is not None and host.launch == launch and host.killed_at is not None:
            self._owner.stuck(host, (host.pid,))
            self._expect_dead(host, linux.now())
