"""What is in memory before the first fork, and room for a host to write its own markers."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.keeper.launcher import RESERVE

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
