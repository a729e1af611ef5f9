"""`python -m agent.keeper --socket PATH --data DIR`: the parent of all hosts of one node."""

from __future__ import annotations

import argparse
import fcntl
import os
import resource
import signal
import sys
import time
from pathlib import Path

from agent.keeper import linux
from agent.keeper.cgroups import of_this_machine
from agent.keeper.loop import Loop
from agent.keeper.server import Server
from agent.keeper.supervisor import Supervisor

IMAGE_ENDS_WITHIN = 1.0  # seconds for the image to leave its group when a keeper ends with nothing to look after
TAKEN = 75  # exit status when another keeper works on this folder


def main() -> int:
    """Work until a shutdown request or SIGTERM; hosts go on without a keeper after the latter."""
    options = argparse.ArgumentParser(prog="tdie keeper", description="Parent of all hosts of one node.")
    options.add_argument("--socket", type=Path, required=True, help="unix socket to serve")
    options.add_argument("--data", type=Path, required=True, help="folder for state, lock and caches")
    options.add_argument("--detach", action="store_true", help="return at once and go on in the background")
    given = options.parse_args()
    if given.detach and os.fork():
        return 0
    os.umask(0o077)
    given.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(given.data / "keeper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.stderr.write(f"KEEPER_RUNNING another keeper works on {given.data}\n")
        return TAKEN
    os.truncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    _prepare()
    keep(given.socket.absolute(), given.data.absolute())
    return 0


def keep(path: Path, data: Path) -> None:
    """Recover what an earlier keeper left, then serve."""
    loop = Loop()
    groups = of_this_machine(linux.keeper_id(data))
    supervisor = Supervisor(loop, data, path, groups)
    supervisor.processes.zygote.start()
    supervisor.recover()
    server = Server(loop, path, supervisor)
    loop.on_signal(signal.SIGTERM, loop.stop)
    loop.on_signal(signal.SIGINT, loop.stop)
    loop.run()
    supervisor.processes.zygote.stop()
    supervisor.save()
    server.close()
    loop.close()
    patience = linux.now() + IMAGE_ENDS_WITHIN
    while not groups.close() and linux.now() < patience and not any(host.alive for host in supervisor.hosts.values()):
        time.sleep(0.01)


def _prepare() -> None:
    linux.become_subreaper()
    linux.set_name("tdie-keeper")
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
