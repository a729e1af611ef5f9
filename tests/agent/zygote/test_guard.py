"""What a zygote does of what its keeper told it last, when the keeper is gone."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from agent.keeper import linux
from agent.keeper.environment import RESERVE, ROOM
from agent.keeper.launcher import Launcher
from agent.keeper.linux import MARKER_HOST
from agent.keeper.loop import Loop

LAUNCH = "of-the-test-of-the-guard"


@pytest.fixture
def keeper() -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    """The keeper's end of the line to a zygote, and the zygote."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-I", "-X", "utf8", "-m", "agent.zygote"]
    with ours, its, subprocess.Popen(command, stdin=its.fileno(), env={RESERVE: "-" * ROOM}) as zygote:
        its.close()
        yield ours, zygote
        zygote.kill()


@pytest.mark.parametrize("ready", [False, True], ids=["before it is ready", "with its words unread"])
def test_what_it_heard_last_counts(keeper: tuple[socket.socket, subprocess.Popen[bytes]], ready: bool) -> None:
    ours, zygote = keeper
    with (
        subprocess.Popen(["sleep", "600"], env={MARKER_HOST: LAUNCH}) as guarded,
        subprocess.Popen(["sleep", "600"]) as free,
    ):
        try:
            if ready:
                assert select.select([ours], [], [], 30.0)[0], "it said that it is ready, and that is not read"
                os.kill(zygote.pid, signal.SIGSTOP)
            ours.send(json.dumps({"guard": LAUNCH}).encode())
            ours.close()
            os.kill(zygote.pid, signal.SIGCONT)
            assert guarded.wait(30.0) == -signal.SIGKILL
            assert zygote.wait(30.0) == 0
            assert free.poll() is None
        finally:
            guarded.kill()
            free.kill()


def test_a_zygote_is_told_of_more_than_fits_into_as_many_messages() -> None:
    loop = Loop()
    launcher = Launcher(loop, lambda *_: None)
    for number in range(2500):
        launcher.guard(f"{number:015x}g", True)
    launcher.start()
    first = launcher.pid
    assert first is not None

    def look() -> None:
        if launcher.ready or os.waitid(os.P_PID, first, os.WEXITED | os.WNOHANG | os.WNOWAIT) or linux.now() > end:
            loop.stop()
        loop.at(linux.now() + 0.02, look)

    end = linux.now() + 30.0
    loop.soon(look)
    loop.run()
    assert launcher.ready, "it was not replaced"
    with subprocess.Popen(["sleep", "600"], env={MARKER_HOST: f"{2499:015x}g"}) as guarded:
        try:
            launcher.stop()
            assert guarded.wait(30.0) == -signal.SIGKILL
            assert os.waitpid(first, 0)[1] == 0
        finally:
            guarded.kill()
