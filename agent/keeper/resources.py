"""What a host is given when it starts: its log, its listening socket."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from agent.errors import Refused

LOOPBACK = "127.0.0.1"


def open_log(path: str) -> int:
    """A descriptor that appends to the file (0600, parents made), or to nowhere when no file is named."""
    if not path:
        return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        code = "DISK_FULL" if error.errno == errno.ENOSPC else "LOG_UNWRITABLE"
        raise Refused(f"cannot write the log {path}: {error.strerror}", code=code) from error


def listen(port: int, address: str = LOOPBACK) -> socket.socket:
    """A listening socket on the port. Refused PORT_IN_USE names the process that has it, when it can be seen."""
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(128)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno != errno.EADDRINUSE:
            raise Refused(f"cannot listen on {address} port {port}: {error.strerror}", code="PORT_REFUSED") from error
        pid = holder(port)
        raise Refused(f"{port}" + (f" pid={pid}" if pid else ""), code="PORT_IN_USE") from error
    return listener


def holder(port: int) -> int | None:
    """The pid of a process that listens on a TCP port, if this user may see it."""
    sockets = {f"socket:[{inode}]" for inode in _listening(port)}
    if not sockets:
        return None
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if any(os.readlink(entry.path) in sockets for entry in os.scandir(f"/proc/{name}/fd")):
                return int(name)
        except OSError:  # gone meanwhile, or not ours to look at
            continue
    return None


def _listening(port: int) -> set[str]:
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == "0A" and int(fields[1].rsplit(":", 1)[1], 16) == port:
                found.add(fields[9])
    return found
