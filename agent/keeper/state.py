"""The state file: what the next keeper needs when this one dies without a word.

One header line, one line a host, one line with the digest of all before it. Written beside and renamed, so it is whole or the
one before; a file that is not whole is kept aside for people.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from agent.errors import Invalid
from agent.keeper import codec
from agent.keeper.hosted import Hosted, restored

VERSION = 1


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the state file held; `problem` says why nothing could be read from it."""

    boot_id: str = ""
    hosts: tuple[Hosted, ...] = ()
    problem: str = ""


def save(path: Path, boot_id: str, hosts: Iterable[Hosted]) -> None:
    """The file holds these hosts, on disk. OSError when it could not be written; the old one is then still there."""
    body = codec.line({"version": VERSION, "boot": boot_id})
    body += "".join(host.stored_text() + "\n" for host in hosts).encode()
    body += codec.line({"sha256": hashlib.sha256(body).hexdigest()})
    beside = path.with_suffix(".new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(body)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    beside.rename(path)


def load(path: Path, aside: Path) -> Recorded:
    """The recorded hosts. A file that makes no sense is moved to `aside`, and the problem says so."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Recorded()
    try:
        return _read(data)
    except (Invalid, KeyError, TypeError, ValueError, AttributeError) as error:
        path.rename(aside)
        return Recorded(problem=f"the state file was not whole ({error}); kept as {aside.name}")


def _read(data: bytes) -> Recorded:
    if not data.endswith(b"\n"):
        raise ValueError("cut off")
    end = data.rindex(b"\n", 0, len(data) - 1) + 1
    if codec.read_object(data[end:]).get("sha256") != hashlib.sha256(data[:end]).hexdigest():
        raise ValueError("its digest does not fit")
    head, *lines = data[:end].splitlines()
    header = codec.read_object(head)
    if header["version"] != VERSION:
        raise ValueError(f"version {header['version']}, this keeper reads {VERSION}")
    return Recorded(str(header["boot"]), tuple(restored(codec.read_object(text)) for text in lines))
