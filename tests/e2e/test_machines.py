"""Three machines (network namespaces) that are made a cluster by nothing but the commands `tdie init cluster` prints."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent.consul.process import dev_command
from tests.conftest import ConsulServer, consul_binary
from tests.e2e.network import network
from tests.e2e.system import System, documents, pids, system, until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.root,
    pytest.mark.consul,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("ip") is None, reason="needs root and the ip program"),
]

MACHINES = {"n1": "10.213.77.1", "n2": "10.213.77.2", "n3": "10.213.77.3"}


class Machines:
    """Programs that run on one of the machines, each with its own /var/lib."""

    def __init__(self, made: System, spaces: Mapping[str, str]) -> None:
        self.made = made
        self.spaces = spaces
        self.running: list[subprocess.Popen[bytes]] = []
        self.environ = {k: v for k, v in made.environ.items() if k != "CONSUL_HTTP_ADDR"}
        self.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def start(self, machine: str, command: list[str], log: str) -> subprocess.Popen[bytes]:
        """The command runs there until the end; a disk of its own lies at the data folder."""
        disk = self.made.folder / "disks" / machine
        disk.mkdir(parents=True, exist_ok=True)
        self.made.data.mkdir(exist_ok=True)
        mounted = f'mount --bind "{disk}" "{self.made.data}" && exec "$@"'
        with (self.made.folder / f"{log}.log").open("ab") as out:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.spaces[machine], "sh", "-c", mounted, "sh", *command],
                cwd=self.made.folder, env=self.environ, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip
        self.running.append(process)
        return process

    def run(self, machine: str, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ip", "netns", "exec", self.spaces[machine], *command],
            cwd=self.made.folder, env=self.environ, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def logs(self) -> str:
        return "\n".join(f"--- {f.name}\n{f.read_text()[-2500:]}" for f in sorted(self.made.folder.glob("*.log")))

    def inside(self) -> list[psutil.Process]:
        """Every process in one of the namespaces: all of them are ours."""
        found: list[psutil.Process] = []
        for space in self.spaces.values():
            done = subprocess.run(
                ["ip", "netns", "pids", space], capture_output=True, text=True, timeout=20, check=True
            )
            for pid in done.stdout.split():
                try:
                    found.append(psutil.Process(int(pid)))
                except psutil.NoSuchProcess:
                    continue
        return found

    def close(self) -> None:
        """Agents and controller are told to end, then whatever else runs in the namespaces, each by its pid."""
        for process in reversed(self.running):
            process.terminate()
        for process in self.running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
        deadline = time.monotonic() + 15
        while (left := self.inside()) and time.monotonic() < deadline:  # keepers start nothing, but hosts may fork
            for other in left:
                try:
                    other.kill()
                except psutil.NoSuchProcess:
                    continue
            time.sleep(0.05)
        assert not left


def printed(text: str) -> dict[str, list[list[str]]]:
    """Machine → the commands that the output says to run there."""
    found: dict[str, list[list[str]]] = {}
    machine = ""
    for line in text.splitlines():
        if on := re.fullmatch(r" +on (\S+) \((\S+)\):", line):
            machine = on[1]
            assert MACHINES[machine] == on[2]
            found[machine] = []
        elif machine and line.startswith("      "):
            found[machine].append(line.split())
        else:
            machine = ""
    return found


ASK = """
import sys, urllib.error, urllib.request
for url in sys.argv[1:]:
    try:
        print(urllib.request.urlopen(url, timeout=5).status)
    except urllib.error.HTTPError as error:
        print(error.code)
"""


def test_machines_join_with_the_printed_commands(consul_server: ConsulServer) -> None:
    binary = consul_binary()
    assert binary is not None
    first = MACHINES["n1"]
    with system(consul_server.http) as made, network(MACHINES) as joined:
        machines = Machines(made, joined.spaces)
        try:
            _consul(machines, binary, first)
            home = made.folder / "made"
            nodes = [word for name, address in MACHINES.items() for word in ("--node", f"{name}={address}")]
            words = ["init", "cluster", made.name, "--repository", str(made.repo.origin), "--consul", f"{first}:8500"]
            done = made.tdie(*words, *nodes, "--folder", str(home), "--data", str(made.data))
            assert done.returncode == 0, done.stderr
            again = made.tdie(*words, *nodes, "--folder", str(home), "--data", str(made.data))
            assert (again.returncode, "EXISTS" in again.stderr) == (1, True)
            _is_private(home)

            # Its first document, and what else the repository is to hold.
            other = {k: v for k, v in documents(made.name, made.inbox).items() if k != "cluster.yaml"}
            made.repo.push({**other, "cluster.yaml": (home / "cluster.yaml").read_text()}, "several machines")
            commands = printed(done.stdout)
            assert commands.keys() == MACHINES.keys()
            assert sorted(len(each) for each in commands.values()) == [1, 1, 2]
            for machine, lines in commands.items():
                for command in lines:
                    machines.start(machine, command, f"{machine}-{command[-1].split('/')[-1]}")

            (status_words,) = (
                line.split() for line in done.stdout.splitlines() if line.strip().startswith("tdie status")
            )
            asking = [word.replace("HOST", first) for word in status_words] + ["-o", "json"]

            def converged() -> dict[str, Any] | None:
                answer = machines.run("n3", *asking)
                doc: dict[str, Any] = json.loads(answer.stdout) if answer.returncode == 0 else {}
                return doc if doc.get("converged") and len(pids(doc)) == 8 else None

            status = until(converged, "all replicas are healthy", seen=machines.logs, within=90)
            on = {r["node"] for row in status["instances"] for r in row["replicas"]}
            assert on == set(MACHINES)
            apis = [node["api"] for node in status["nodes"]]
            assert sorted(apis) == [f"http://{address}:5100" for address in MACHINES.values()]
            for replica, pid in pids(status).items():
                assert psutil.Process(pid).is_running(), replica
                assert os.stat(f"/proc/{pid}/ns/net").st_ino in {
                    os.stat(f"/run/netns/{s}").st_ino for s in joined.spaces.values()
                }

            _no_token_is_seen(machines, home)
            urls = [f"{api}/api/node/report" for api in apis] + [f"http://{first}:7777/api/master/status"]
            assert machines.run("n2", sys.executable, "-c", ASK, *urls).stdout.split() == ["401"] * 4
        finally:
            machines.close()


def _consul(machines: Machines, binary: Path, address: str) -> None:
    """A real Consul server on one machine, reachable by all."""
    command = [each for each in dev_command(binary, 8500, "consul-of-all") if not each.startswith(("-bind", "-client"))]
    machines.start("n1", [*command, f"-bind={address}", f"-client={address}"], "consul")
    url = f"http://{address}:8500/v1/catalog/nodes?consistent"
    script = f"import urllib.request; print(urllib.request.urlopen({url!r}, timeout=2).read().decode())"
    until(
        lambda: "consul-of-all" in machines.run("n2", sys.executable, "-c", script).stdout,
        "Consul is reachable from another machine",
        seen=machines.logs,
    )


def _is_private(home: Path) -> None:
    tokens, people = sorted(home.rglob("*.token")), sorted(home.rglob("people"))
    assert len(tokens) == 4 + 3  # here, and only the cluster's on each machine
    assert len(people) == 1 + 3
    for file in (*tokens, *people):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for folder in (home, *(home / name for name in MACHINES)):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def _no_token_is_seen(machines: Machines, home: Path) -> None:
    """No token is on a command line, in an environment, or in a log."""
    secrets = {file.read_text().strip() for file in home.rglob("*.token")}
    assert len(secrets) == 4
    seen = machines.inside()
    assert len(seen) >= 3 * 3 + 8
    for process in seen:
        for part in ("cmdline", "environ"):
            text = Path(f"/proc/{process.pid}/{part}").read_text(errors="replace")
            assert not any(secret in text for secret in secrets), f"{part} of {process}"
    assert not any(secret in machines.logs() for secret in secrets)
