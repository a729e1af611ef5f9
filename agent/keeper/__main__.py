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

from agent.errors import Invalid
from agent.keeper import linux
from agent.keeper.cgroups import of_this_machine
from agent.keeper.handover import Handover, read
from agent.keeper.identity import code_identity
from agent.keeper.loop import Loop
from agent.keeper.recovery import recover
from agent.keeper.server import Server, refusal
from agent.keeper.supervisor import Supervisor
from agent.keeper.upgrade import REHEARSE, RESUME, Upgrade, arrived

IMAGE_ENDS_WITHIN = 1.0  # seconds for the image to leave its group when a keeper ends with nothing to look after
TAKEN = 75  # exit status when another keeper works on this folder


def main() -> int:
    """Work until a shutdown request or SIGTERM; hosts go on without a keeper after the latter."""
    options = argparse.ArgumentParser(prog="tdie keeper", description="Parent of all hosts of one node.")
    options.add_argument("--socket", type=Path, help="unix socket to serve")
    options.add_argument("--data", type=Path, help="folder for state, lock and caches")
    options.add_argument("--detach", action="store_true", help="return at once and go on in the background")
    options.add_argument(REHEARSE, action="store_true", help=argparse.SUPPRESS)
    options.add_argument(RESUME, default="", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.rehearse:
        return rehearse()
    if given.socket is None or given.data is None:
        options.error("--socket and --data are required")
    if given.detach and os.fork():
        return 0
    os.umask(0o077)
    kept: Handover | Invalid | None = None
    lock: int | None
    if given.resume:
        memory, lock = map(int, given.resume.split(":"))
        kept = take(memory, lock)
    else:
        lock = _lock(given.data)
    if lock is None:
        sys.stderr.write(f"KEEPER_RUNNING another keeper works on {given.data}\n")
        return TAKEN
    _prepare()
    keep(given.socket.absolute(), given.data.absolute(), lock, kept)
    return 0


def keep(path: Path, data: Path, lock: int, kept: Handover | Invalid | None = None) -> None:
    """Serve: with what the image of this keeper before us handed over, or with what an earlier keeper left."""
    loop = Loop()
    groups = of_this_machine(linux.keeper_id(data))
    supervisor = Supervisor(loop, data, path, groups)
    upgrade = Upgrade(loop, supervisor, code_identity())
    if isinstance(kept, Handover):
        server = Server(loop, path, supervisor, upgrade, kept.server)
        supervisor.resume(kept.hosts)
        loop.soon(lambda: _tell(kept, upgrade.code, server))
    else:
        supervisor.processes.zygote.start()
        recover(supervisor)
        server = Server(loop, path, supervisor, upgrade)
        if kept is not None:
            supervisor.problems["STATE_REBUILT"] = kept.detail
    upgrade.gather = lambda: Handover(upgrade.code, linux.now(), supervisor.hand_over(), server.hand_over())
    upgrade.failed = lambda error: server.upgraded(refusal(error))

    def end() -> None:
        upgrade.never()
        loop.stop()

    loop.on_signal(signal.SIGTERM, end)
    loop.on_signal(signal.SIGINT, end)
    loop.at(0.0, arrived)
    loop.run()
    while upgrade.due:
        supervisor.journal.save()
        upgrade.carry_out(lock, ["--socket", str(path), "--data", str(data)])
        loop.run()  # it could not
    supervisor.processes.zygote.stop()
    supervisor.journal.save()
    server.close()
    loop.close()
    patience = linux.now() + IMAGE_ENDS_WITHIN
    while not groups.close() and linux.now() < patience and not any(host.alive for host in supervisor.hosts.values()):
        time.sleep(0.01)


def rehearse() -> int:
    """What the next image will do first, with nothing taken: its status says whether this code can go on from that state."""
    read(os.dup(0))
    os.execv(sys.executable, [sys.executable, "-I", "-X", "utf8", "-m", "agent.zygote", REHEARSE])


def take(memory: int, lock: int) -> Handover | Invalid:
    """What the image before us handed over; else why not, and nothing but the lock is held: hosts are found anew."""
    os.set_inheritable(lock, False)
    try:
        kept = read(memory)
        for descriptor in kept.descriptors():
            os.set_inheritable(descriptor, False)
    except (Invalid, OSError) as error:
        os.closerange(3, lock)
        os.closerange(lock + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        sys.stderr.write(f"HANDOVER_UNREADABLE {error}\n")
        return error if isinstance(error, Invalid) else Invalid(str(error), code="HANDOVER_UNREADABLE")
    return kept


def _tell(kept: Handover, code: str, server: Server) -> None:
    """Whoever asked for it, and the keeper's own log, hear what was upgraded."""
    alive = sum(each.host.alive for each in kept.hosts.hosts)
    said = {"before": kept.code, "after": code, "hosts": alive, "took": round(linux.now() - kept.at, 3)}
    server.upgraded({"result": said})
    words = " ".join(f"{name}={value}" for name, value in said.items())
    sys.stderr.write(f"{linux.wall()} KEEPER_UPGRADED {words}\n")


def _lock(data: Path) -> int | None:
    """The lock of this folder, or None when another keeper has it."""
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = os.open(data / "keeper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    os.truncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    return lock


def _prepare() -> None:
    linux.become_subreaper()
    linux.set_name("tdie-keeper")
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
