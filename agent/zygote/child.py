"""From a fork to a host: session, environment, markers, limits; then a program or the component host."""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from agent.keeper import codec, linux
from agent.keeper.environment import environment
from agent.keeper.protocol import HostOrder
from agent.zygote.image import Room

CANNOT_RUN = 127
ORDER_LIMIT = 10.0  # seconds to hear from the keeper what to run
OPEN_FILES = 8192


def become_host(request: Mapping[str, Any], held: Mapping[str, int], room: Room) -> None:
    """Run what the keeper says on the channel; ends this process's ties to the zygote first."""
    os.setsid()
    channel = socket.socket(fileno=held["channel"])
    channel.settimeout(ORDER_LIMIT)
    channel.sendall(codec.line({"pid": os.getpid()}))
    os.dup2(held["log"], 1)
    os.dup2(held["log"], 2)
    os.close(held["log"])
    said = hear(channel)
    order = codec.order_from(said[0]["order"])
    env = environment(order, request["launch"], request["keeper"])
    _replace_environment(env, room)
    linux.set_name(f"tdie:{order.replica}")
    _limit(order, request)
    if order.lease is not None:
        die_with(request["parent"])
    if order.runtime == "exec":
        _run_program(order, env, channel)
    run_component(order, channel, request, held, said)


def run_component(
    order: HostOrder,
    channel: socket.socket,
    request: Mapping[str, Any],
    held: Mapping[str, int],
    said: list[dict[str, Any]],
) -> None:
    """The component host, until it ends; `said` is what was heard on the channel so far, the order first."""
    sys.pycache_prefix = request["cache"]  # a content root stays as its digest says
    gc.enable()
    from agent.host import runtime

    listener = socket.socket(fileno=held["listener"]) if "listener" in held else None
    runtime.run(order, channel, said[0]["socket"], listener, said[1:])


def start_cold(request: Mapping[str, Any], held: Mapping[str, int]) -> None:
    """The same in a process that was started for this host: its session, environment, markers and log are right already."""
    for descriptor in held.values():
        os.set_inheritable(descriptor, False)
    channel = socket.socket(fileno=held["channel"])
    channel.settimeout(ORDER_LIMIT)
    said = hear(channel)
    order = codec.order_from(said[0]["order"])
    linux.set_name(f"tdie:{order.replica}")
    linux.spare_no_more()
    _limit(order, request)
    if order.lease is not None:
        die_with(request["parent"])
    run_component(order, channel, request, held, said)


def die_with(keeper: int) -> None:
    """From here on the kernel kills this process when its keeper ends; it ends by itself when the keeper is gone already.

    What forked us is our parent until it has ended, so it is waited for: the signal is for the end of the parent of now.
    """
    patience = time.monotonic() + ORDER_LIMIT
    while os.getppid() != keeper:
        if time.monotonic() > patience:
            raise SystemExit(CANNOT_RUN)
        time.sleep(0.001)
    linux.die_with_parent()
    if os.getppid() != keeper:
        raise SystemExit(CANNOT_RUN)


def hear(channel: socket.socket) -> list[dict[str, Any]]:
    """What the keeper says first. Ends this process when it says nothing in time or is gone."""
    lines = codec.Lines()
    while True:
        data = channel.recv(1 << 18)
        if not data:
            raise SystemExit(CANNOT_RUN)  # the keeper is gone before it said anything
        if said := lines.feed(data):
            return said


def _replace_environment(env: Mapping[str, str], room: Room) -> None:
    os.environ.clear()
    os.environ.update(env)
    room.write(env)


def _limit(order: HostOrder, request: Mapping[str, Any]) -> None:
    """Into the group that the keeper made for this host, if it did; what that does not bound is bounded per process."""
    if group := request.get("group"):
        _say(f"{group}/cgroup.procs", "0")
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, hard), hard))
    if order.memory is not None and not request.get("bounded"):
        # private memory of each process; RLIMIT_AS would count what runtimes only reserve
        resource.setrlimit(resource.RLIMIT_DATA, (order.memory, order.memory))


def _say(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _run_program(order: HostOrder, env: dict[str, str], channel: socket.socket) -> NoReturn:
    """The program takes the place of this process; the channel closes with that, which tells the keeper."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    channel.set_inheritable(False)
    program = order.command[0]
    try:
        os.chdir(order.component.content_root)
        if "/" in program:
            program = os.path.join(order.component.content_root, program)
        os.execvpe(program, list(order.command), env)
    except OSError as error:
        what = f"EXEC_FAILED {order.command[0]}: {error.strerror}"
        channel.sendall(codec.line({"failed": {"cause": what, "final": True}}))
        os._exit(CANNOT_RUN)
