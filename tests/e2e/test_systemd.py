"""The units that `tdie init cluster` writes, under a real systemd: it is process 1 of namespaces made for this test."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent.consul.process import embedded_command
from agent.keeper import linux
from tests import servers
from tests.conftest import ConsulServer
from tests.e2e.system import System, documents, pids, replicas, system, until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.root,
    pytest.mark.server("systemd"),
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and the ip program"),
]

UNITS = ("tdie-keeper.service", "tdie-agent.service", "tdie-controller.service")
TARGETS = ("sysinit", "basic", "shutdown", "multi-user", "network-online", "test")
# Nothing but our own units is known to this systemd (it would clean /tmp, for one), and it cannot write anywhere but into
# the folder of the test.
BOOT = """
set -eu
mount --make-rprivate /
mount --bind "$1" "$1"
mount -o remount,ro,bind /
mount -t tmpfs tmpfs /run
mkdir -p /run/lock
mount -t tmpfs tmpfs /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /etc/systemd/system
ip link set lo up
cp "$2"/*.service /etc/systemd/system/
for target in $4; do printf '[Unit]\\nDefaultDependencies=no\\n' > "/etc/systemd/system/$target.target"; done
mkdir /etc/systemd/system/service.d
printf '[Service]\\nStandardOutput=append:%s/systemd.log\\nStandardError=inherit\\n' "$1" > /etc/systemd/system/service.d/log.conf
export SYSTEMD_UNIT_PATH=/etc/systemd/system
exec "$3" --system --unit=test.target --show-status=no --log-target=console
"""


class Machine:
    """One machine that systemd has booted."""

    def __init__(self, made: System, pid: int) -> None:
        self.made, self.pid = made, pid
        self.last = ""

    def run(self, *words: str, within: float = 60.0) -> subprocess.CompletedProcess[str]:
        environ = {k: v for k, v in self.made.environ.items() if k != "CONSUL_HTTP_ADDR"}
        return subprocess.run(
            ["nsenter", "-t", str(self.pid), "-a", *words],
            cwd="/", env=environ, capture_output=True, text=True, timeout=within, check=False,
        )  # fmt: skip

    def systemctl(self, *words: str) -> str:
        done = self.run("systemctl", *words)
        assert done.returncode == 0, f"systemctl {' '.join(words)}: {done.stdout}{done.stderr}{self.logs()}"
        return done.stdout

    def main_pid(self, unit: str) -> int:
        """As this machine sees it."""
        return int(self.systemctl("show", "-P", "MainPID", unit))

    def status(self) -> dict[str, Any] | None:
        """The leader's status once all is well."""
        asking = [
            sys.executable,
            "-m",
            "reconciler",
            "status",
            "--consul",
            "127.0.0.1:8500",
            "--cluster",
            self.made.name,
        ]
        done = self.run(*asking, "--token-file", str(self.made.folder / "made/operator.token"), "-o", "json")
        doc: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {}
        self.last = done.stdout + done.stderr
        return doc if doc.get("converged") else None

    def logs(self) -> str:
        return self.last + (self.made.folder / "systemd.log").read_text(errors="replace")[-6000:]


@contextmanager
def booted(made: System, units: Path) -> Iterator[Machine]:
    """The machine is up; at the end all its processes are gone with its process 1, and its control groups after them."""
    _possible(made, units)
    before, ours = _groups(), linux.keeper_id(made.data / "agent")
    with (made.folder / "systemd.log").open("ab") as log:
        outer = subprocess.Popen(
            _command(made, units, str(servers.find("systemd"))),
            env={"PATH": os.environ["PATH"], "container": "tdie-test", "HOME": "/root", "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        machine = Machine(made, until(lambda: _child(outer), "process 1 is there"))
        until(
            lambda: machine.run("systemctl", "is-active", "test.target").stdout.strip() == "active",
            "systemd is up",
            seen=machine.logs,
        )
        yield machine
    finally:
        if inner := _child(outer):
            with suppress(ProcessLookupError):
                os.kill(inner, signal.SIGKILL)
        outer.wait(20)
        until(lambda: _remove(_new_ones(before, ours)), "no control group is left", within=10)


def _command(made: System, units: Path, first: str) -> list[str]:
    """Namespaces of its own, and in them this program as process 1."""
    return [
        "unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--uts", "--ipc", "--net",
        "sh", "-c", BOOT, "sh", str(made.folder), str(units), first, " ".join(TARGETS),
    ]  # fmt: skip


def _possible(made: System, units: Path) -> None:
    """Some sandboxes let nobody mount control groups: there the test is left out, and says so."""
    tried = subprocess.run(_command(made, units, "/bin/true"), capture_output=True, text=True, timeout=30, check=False)
    if tried.returncode != 0:
        pytest.skip(f"NO SYSTEMD: this machine does not let us boot one: {tried.stderr.strip()[-200:]}")


def _child(outer: subprocess.Popen[bytes]) -> int:
    assert outer.poll() is None, "systemd did not stay"
    children = psutil.Process(outer.pid).children()
    return children[0].pid if children and children[0].name() == "systemd" else 0


def _groups() -> set[Path]:
    for root in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")):
        if (root / "cgroup.procs").exists():
            return {path for path in root.rglob("*") if path.is_dir()}
    return set()


def _new_ones(before: set[Path], keeper: str) -> set[Path]:
    """Groups that came since, without those of other tests' keepers."""
    return {group for group in _groups() - before if "tdie" not in group.parts or keeper in group.parts}


def _remove(groups: set[Path]) -> bool:
    for group in sorted(groups, reverse=True):
        with suppress(OSError):  # a process in it is still ending
            group.rmdir()
    return not any(group.exists() for group in groups)


def test_the_units_keep_replicas_through_restarts_of_everything(consul_server: ConsulServer) -> None:
    with system(consul_server.http, ("n1",)) as made:
        home = made.folder / "made"
        words = ["init", "cluster", made.name, "--repository", str(made.repo.origin), "--node", "n1=127.0.0.1"]
        done = made.tdie(*words, "--folder", str(home), "--data", str(made.data))
        assert done.returncode == 0, done.stderr
        other = {k: v for k, v in documents(made.name, made.inbox, ("n1",)).items() if k != "cluster.yaml"}
        made.repo.push({**other, "cluster.yaml": (home / "cluster.yaml").read_text()}, "one machine")
        units = home / "n1"
        consul = " ".join(embedded_command(made.folder / "consul.db", 8500, "consul-of-test"))
        (units / "consul.service").write_text(f"[Service]\nExecStart={consul}\n")

        checked = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", *(str(units / unit) for unit in UNITS)],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert (checked.returncode, checked.stderr) == (0, "")
        with booted(made, units) as machine:
            machine.systemctl("start", "consul.service")
            machine.systemctl("enable", "--now", *UNITS)
            first = until(machine.status, "all replicas are healthy", seen=machine.logs, within=30)
            wanted = pids(first)
            assert len(wanted) == 4
            epoch = first["epoch"]

            for unit in ("tdie-agent.service", "tdie-controller.service"):
                before = machine.main_pid(unit)
                machine.systemctl("restart", unit)
                assert machine.main_pid(unit) != before
                again = until(machine.status, f"all is well after {unit}", seen=machine.logs, within=60)
                _the_same(again, wanted)
            assert again["epoch"] > epoch

            keeper = machine.main_pid("tdie-keeper.service")
            machine.run("kill", "-9", str(keeper))
            until(
                lambda: machine.main_pid("tdie-keeper.service") not in (0, keeper),
                "systemd starts the keeper again",
                seen=machine.logs,
            )
            _the_same(until(machine.status, "all is well after the keeper", seen=machine.logs, within=60), wanted)

            machine.systemctl("stop", "tdie-agent.service", "tdie-controller.service")
            for replica, pid in wanted.items():
                assert machine.run("kill", "-0", str(pid)).returncode == 0, f"{replica} went with the agent"
            machine.systemctl("start", "tdie-agent.service", "tdie-controller.service")
            _the_same(until(machine.status, "all is well again", seen=machine.logs, within=60), wanted)

            tokens = {file.read_text().strip() for file in home.rglob("*.token")}
            shown = machine.systemctl("show", *UNITS) + machine.logs()
            assert not any(token in shown for token in tokens)


def _the_same(status: dict[str, Any], wanted: dict[str, int]) -> None:
    assert pids(status) == wanted
    assert {name: one["restarts"] for name, one in replicas(status).items()} == dict.fromkeys(wanted, 0)
