"""Child processes of `tdie up`, and what of them is still there. Only what we started is ever signalled."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from agent.keeper import linux

RESTART_PAUSE = 1.0  # seconds before a child that ended is started again


class Child:
    """One child process in a session of its own, with a log file."""

    def __init__(self, name: str, words: list[str], log: Path) -> None:
        self.name = name
        self.log = log
        self._words = words
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def start(self) -> None:
        """The process runs; it outlives us unless somebody stops it."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    async def keep_running(self, say: Callable[[str], None]) -> None:
        """Start it, and start it again whenever it ends, until cancelled."""
        while True:
            self.start()
            process = self._process
            assert process is not None
            code = await _exit_code(process)
            say(f"          {self.name} ended ({_how(code)}); starting it again. Its log: {self.log}")
            await asyncio.sleep(RESTART_PAUSE)

    async def stop(self, wait: float) -> None:
        """SIGTERM, and SIGKILL when it takes longer than `wait` seconds."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(wait):
                await _exit_code(process)
        except TimeoutError:
            process.kill()
            await _exit_code(process)

    def tail(self, lines: int = 15) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


async def _exit_code(process: subprocess.Popen[bytes]) -> int:
    """The exit code, waited for on a pidfd; no thread, no polling."""
    if (code := process.poll()) is not None:
        return code
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    fd = os.pidfd_open(process.pid)
    loop.add_reader(fd, gone.set)
    try:
        await gone.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)
    return process.wait()


def _how(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"


def alive(pid: int) -> bool:
    """Whether a process with this pid runs (a zombie does not)."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def start_time(pid: int) -> float | None:
    """When the process started; with the pid its identity on this machine."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


def leftovers(data: Path) -> list[str]:
    """Processes that still run for this data folder, a line each."""
    found = []
    marks = _marks(data)
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess, OSError):
            if process.pid != os.getpid() and _belongs(process, data, marks):
                found.append(f"pid {process.pid}: {' '.join(process.cmdline())[:120] or process.name()}")
    return found


def _belongs(process: psutil.Process, data: Path, marks: frozenset[bytes]) -> bool:
    """Whether it is a program of ours with this data folder in its arguments, or a host of a keeper that has its data there."""
    folder = str(data)

    def inside(text: str) -> bool:
        return text == folder or text.startswith(folder + "/")

    words = process.cmdline()
    if any(inside(word) for word in words) and _stays(words):
        return True
    # Read as it is: a forked host writes its marks where other readers expect the end of the environment.
    return not marks.isdisjoint(Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0"))


def _marks(data: Path) -> frozenset[bytes]:
    """How the hosts of every keeper in this folder are marked."""
    folders = [folder for folder in (data, *data.glob("*"), *data.glob("nodes/*")) if folder.is_dir()]
    return frozenset(f"{linux.MARKER_KEEPER}={linux.keeper_id(folder)}".encode() for folder in folders)


def _stays(words: list[str]) -> bool:
    """Whether this is a program of ours that goes on by itself; `tdie down` that waits for us is none."""
    if "reconciler" in words:
        return "up" in words or "controller" in words
    return any(word in ("agent", "agent.keeper", "agent.consul.embedded") for word in words)
