"""A real Consul of several servers and a client agent on each other machine; each of them can be killed and started again."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.network import Network
from tests.e2e.system import until

PORT = 8500
ALL = (
    'session_ttl_min = "1s" performance { raft_multiplier = 1 } disable_update_check = true leave_on_terminate = true '
)


@dataclass
class Consuls:
    """Servers and clients, by machine. `hcl` is what all of them are told besides."""

    network: Network
    binary: Path
    folder: Path
    servers: Sequence[str]
    clients: Sequence[str]
    hcl: str = ""
    token: str = ""  # with which we ask
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, *machines: str) -> None:
        """Consul runs on these machines, with the data it had there."""
        for machine in machines:
            self.running[machine] = self._start(machine)

    def _start(self, machine: str) -> subprocess.Popen[bytes]:
        data = self.folder / machine
        data.mkdir(parents=True, exist_ok=True)
        address = self.network.addresses[machine]
        command = [
            str(self.binary), "agent", f"-node={machine}", f"-data-dir={data}", f"-bind={address}", "-client=0.0.0.0",
            "-dns-port=-1", "-grpc-port=-1", "-disable-host-node-id", f"-hcl={ALL}{self.hcl}", "-retry-interval=1s",
        ]  # fmt: skip
        if machine in self.servers:
            command += ["-server", f"-bootstrap-expect={len(self.servers)}"]
        command += [f"-retry-join={self.network.addresses[each]}" for each in self.servers if each != machine]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("CONSUL_")}
        with self.network.inside(machine), (self.folder / f"{machine}.log").open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environ)

    def kill(self, *machines: str) -> None:
        """kill -9; the data stays."""
        for machine in machines:
            self.running[machine].kill()
        for machine in machines:
            self.running.pop(machine).wait(10)

    def wipe(self, *machines: str) -> None:
        """Their disks are empty."""
        for machine in machines:
            shutil.rmtree(self.folder / machine)

    def forget(self, machine: str) -> None:
        """It was ended together with its machine."""
        if (process := self.running.pop(machine, None)) is not None:
            process.wait(10)

    def leave(self, machine: str) -> None:
        """It is told to end, and takes leave of the others."""
        self.running[machine].terminate()
        self.running.pop(machine).wait(20)

    def close(self) -> None:
        for process in self.running.values():
            process.kill()
        for process in self.running.values():
            process.wait(10)
        self.running.clear()

    # -- asking it, from wherever this thread is

    def ask(self, machine: str, path: str, *, method: str = "GET", body: bytes | None = None, within: float = 2) -> Any:
        """What the Consul of that machine answers, as JSON; None when there is nothing."""
        try:
            return json.loads(self.raw(machine, path, method=method, body=body, within=within) or b"null")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def raw(
        self, machine: str, path: str, *, method: str = "GET", body: bytes | None = None, within: float = 2
    ) -> bytes:
        """The bytes it answers."""
        url = f"http://{self.network.addresses[machine]}:{PORT}/v1/{path}"
        headers = {"X-Consul-Token": self.token} if self.token else {}
        request = urllib.request.Request(url, data=body, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=within) as answer:
            return bytes(answer.read())

    def leader(self, *, but: Sequence[str] = ()) -> str:
        """The server that leads, as the others but these say; empty while there is none."""
        for machine in self.servers:
            if machine in self.running and machine not in but:
                try:
                    address = str(self.ask(machine, "status/leader")).partition(":")[0]
                except OSError:
                    continue
                for name, its in self.network.addresses.items():
                    if its == address and name not in but:
                        return name
        return ""

    def knows(self, machines: Sequence[str]) -> bool:
        """Whether there is a leader, and these machines are healthy members."""
        try:
            found = self.ask(next(iter(self.servers)), "health/state/passing?consistent")
        except OSError:
            return False
        healthy = {each["Node"] for each in found or () if each["CheckID"] == "serfHealth"}
        return healthy >= set(machines)

    def all_vote(self) -> bool:
        """Whether any one of the servers can be missed. One that comes back without data has no vote for its first ten seconds."""
        try:
            raft = self.ask(self.leader() or next(iter(self.servers)), "operator/raft/configuration")
        except OSError:
            return False
        voters = {each["Address"].partition(":")[0] for each in raft["Servers"] if each["Voter"]}
        return voters == {self.network.addresses[each] for each in self.servers}

    def ready(self) -> None:
        """All of them are up and know each other."""
        everybody = [*self.servers, *self.clients]
        until(lambda: self.knows(everybody), "Consul's servers and clients know each other", seen=self.logs)

    def logs(self, size: int = 1500) -> str:
        files = sorted(self.folder.glob("*.log"))
        return "\n".join(f"--- consul {file.name}\n{file.read_text(errors='replace')[-size:]}" for file in files)
