"""What is in memory before the first fork, and room for a host to write its own markers."""

from __future__ import annotations

import ctypes
import importlib
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.keeper import codec
from agent.keeper.environment import RESERVE
from agent.keeper.protocol import Code, HostOrder

REHEARSALS = 16

WARM = (
    "agent.host.runtime",
    "agent.sdk",
    "asyncio",
    "concurrent.futures.thread",
    "encodings.idna",
    "fnmatch",
    "multiprocessing",
    "shutil",
    "tempfile",
    "typing",
    "urllib.parse",
    "uuid",
)


def warm() -> None:
    """Everything a host needs until its API is called is imported."""
    for name in WARM:
        importlib.import_module(name)


@dataclass(frozen=True, slots=True)
class Room:
    """The memory behind /proc/self/environ. A fork keeps it, so a host has to write its own markers there."""

    start: int
    size: int

    @classmethod
    def of_this_process(cls) -> Room:
        fields = Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()
        start, end = int(fields[47]), int(fields[48])
        if RESERVE.encode() not in Path("/proc/self/environ").read_bytes():
            raise RuntimeError("the zygote was started without room for markers")
        return cls(start, end - start)

    def write(self, env: Mapping[str, str]) -> None:
        """/proc/self/environ shows these variables. Call it when nothing reads the old ones any more."""
        data = b"".join(f"{key}={value}".encode() + b"\0" for key, value in env.items())
        whole = data[: data.rindex(b"\0", 0, self.size) + 1] if len(data) > self.size else data
        ctypes.memset(self.start, 0, self.size)
        ctypes.memmove(self.start, whole, len(whole))


def rehearse(times: int = REHEARSALS) -> None:
    """The way of a host was gone often enough that the interpreter has specialised it.

    Otherwise every fork would do that for itself, which writes to pages that could stay shared and costs time.
    """
    from agent.host import runtime

    stage = Path(__file__).with_name("rehearsal")
    order = HostOrder(
        "rehearsal",
        "rehearsal",
        "",
        "",
        "python",
        Code("rehearsal", "0", "", str(stage), "tdie_rehearsal:Rehearsal", {"size": 1}),
        env={"TDIE_LOG_LEVEL": "INFO"},
    )
    path, quiet, loud = list(sys.path), os.open(os.devnull, os.O_WRONLY), os.dup(2)
    os.dup2(quiet, 2)
    try:
        for _ in range(times):
            ours, its = socket.socketpair()
            with ours:
                text = codec.order_text(order)
                runtime.run(codec.order_from(codec.read_object(text)), its, "/nowhere")
                sys.modules.pop("tdie_rehearsal", None)
                sys.path[:] = path
    finally:
        os.dup2(loud, 2)
        os.close(quiet)
        os.close(loud)
        os.chdir("/")
