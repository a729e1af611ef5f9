"""Git over ssh, against a real sshd of our own: known hosts only, our key only, and never for ever."""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.consul.process import free_ports
from reconciler.source.access import Access
from reconciler.source.source import GitSource
from reconciler.source.sourced import Sourced
from tests import servers
from tests.reconciler.source.repos import GOOD, Repo, instance

pytestmark = pytest.mark.server("sshd")
Follow = Callable[..., GitSource]
USER = pwd.getpwuid(os.getuid()).pw_name


@dataclass
class Sshd:
    """A server on loopback that lets one key in."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes]

    def url(self, repo: Repo) -> str:
        return f"ssh://{USER}@127.0.0.1:{self.port}{repo.origin}"

    def access(self, *, known: bool = True, key: str = "client", patience: float = 20.0) -> Access:
        """How to reach it: a home that knows its host key, or another one, or none."""
        home = self.folder / f"home-{known}"
        (home / ".ssh").mkdir(parents=True, exist_ok=True)
        if known:
            public = (self.folder / "host.pub").read_text().split()[:2]
            (home / ".ssh/known_hosts").write_text(f"[127.0.0.1]:{self.port} {' '.join(public)}\n")
        return Access(home=home, ssh_key=self.folder / key, connect_timeout=patience, timeout=patience)


def keygen(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)], check=True, timeout=10)


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    folder = tmp_path / "sshd"
    folder.mkdir(mode=0o700)
    for name in ("host", "client", "stranger", "other-host"):
        keygen(folder / name)
    (folder / "authorized").write_text((folder / "client.pub").read_text())
    (port,) = free_ports(1)
    config = folder / "config"
    lines = (
        f"Port {port}", "ListenAddress 127.0.0.1", f"HostKey {folder / 'host'}", "PidFile none", "UsePAM no",
        f"AuthorizedKeysFile {folder / 'authorized'}", "StrictModes no", "PasswordAuthentication no",
        "KbdInteractiveAuthentication no", "PermitRootLogin prohibit-password", "PrintMotd no",
    )  # fmt: skip
    config.write_text("\n".join(lines) + "\n")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where it locks its unprivileged half in
    with (folder / "log").open("wb") as log:
        program = str(servers.find("sshd"))
        process = subprocess.Popen([program, "-D", "-e", "-f", str(config)], stderr=log, start_new_session=True)
    deadline = time.monotonic() + 10
    while not _answers(port):
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.02)
    yield Sshd(folder, port, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


async def test_a_repository_is_followed_over_ssh(repo: Repo, follow: Follow, sshd: Sshd) -> None:
    first = repo.commit(GOOD)
    source = follow(sshd.url(repo), access=sshd.access())
    looked = await source.look()
    assert (looked.trouble, looked.commit) == (None, first)
    second = repo.commit({"one.yaml": instance("one", "wave: 1")})
    looked = await source.look()
    assert (looked.trouble, looked.commit) == (None, second)
    assert looked.desired is not None
    assert looked.desired.instances["one"].wave == 1


@pytest.mark.parametrize("why", ["unknown host", "another host key", "a key nobody let in"])
async def test_who_is_not_who_we_expect_is_refused(repo: Repo, follow: Follow, sshd: Sshd, why: str) -> None:
    repo.commit(GOOD)
    access = sshd.access(known=why != "unknown host", key="stranger" if why == "a key nobody let in" else "client")
    if why == "another host key":
        assert access.home is not None
        public = (sshd.folder / "other-host.pub").read_text().split()[:2]
        (access.home / ".ssh/known_hosts").write_text(f"[127.0.0.1]:{sshd.port} {' '.join(public)}\n")
    looked = await follow(sshd.url(repo), access=access).look()
    assert looked.desired is None
    assert looked.trouble is not None
    assert looked.trouble.code == "GIT_UNREACHABLE"


async def test_a_server_that_goes_silent_is_cut_and_the_last_good_commit_stays(
    repo: Repo, follow: Follow, sshd: Sshd
) -> None:
    good = repo.commit(GOOD)
    source = follow(sshd.url(repo), access=sshd.access(patience=1.0))
    before = await _well(source)
    assert before.commit == good
    os.kill(sshd.process.pid, signal.SIGSTOP)  # the kernel still accepts connections
    started = time.monotonic()
    looked = await source.look()
    assert time.monotonic() - started < 15
    os.kill(sshd.process.pid, signal.SIGCONT)
    assert looked.desired is before.desired
    assert looked.trouble is not None
    assert looked.trouble.code == "GIT_UNREACHABLE"
    later = repo.commit({"one.yaml": instance("one", "wave: 2")})
    assert (await _well(source)).commit == later


async def _well(source: GitSource) -> Sourced:
    """The first look without trouble: the second that the server is given may be short on a busy machine."""
    deadline = time.monotonic() + 30
    while (looked := await source.look()).trouble is not None:
        assert time.monotonic() < deadline, looked.trouble
    return looked
