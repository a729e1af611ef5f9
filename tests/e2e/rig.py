"""A whole installation on machines of its own: three Consul servers, two controllers, three nodes, and a desk to look from.

Every machine is a network namespace, and has a Consul client of its own where it has no server. Programs reach each other over the
switch only, so what is cut is cut for all of them, without a word.
"""

from __future__ import annotations

import base64
import json
import signal
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.consuls import Consuls
from tests.e2e.network import Network, network
from tests.e2e.system import NODES, Status, System, kill, system, until
from tests.e2e.witness import signal_all

SERVERS = ("s1", "s2", "s3")
CONTROLLERS = ("c1", "c2")
DESK = "desk"
ADDRESSES = {name: f"10.213.78.{n}" for n, name in enumerate((*SERVERS, *CONTROLLERS, *NODES, DESK), 1)}
LOCAL = "127.0.0.1:8500"


@dataclass
class Rig:
    """What runs where. This process is on the desk."""

    network: Network
    consuls: Consuls
    made: System
    agent_words: Sequence[str] = ()
    controller_words: Sequence[str] = ()
    agents: dict[str, int] = field(default_factory=dict)  # node -> pid
    controllers: dict[str, int] = field(default_factory=dict)
    stopped: list[int] = field(default_factory=list)  # pids that stand still

    def begin(self) -> None:
        """Every program runs; how far they got is for others to see."""
        for name in CONTROLLERS:
            self.controller(name)
        for node in NODES:
            self.agent(node)

    def agent(self, node: str) -> None:
        with self.network.inside(node):
            words = ["--bind", ADDRESSES[node], "--consul", LOCAL, *self.agent_words]
            self.agents[node] = self.made.agent(node, *words).pid

    def controller(self, name: str) -> None:
        with self.network.inside(name):
            words = ["--bind", ADDRESSES[name], "--consul", LOCAL, *self.controller_words]
            self.controllers[name] = self.made.controller(name, *words).pid

    def kill(self, machine: str) -> None:
        """kill -9 of the agent or the controller there."""
        kill((self.agents if machine in NODES else self.controllers).pop(machine))

    def kill_keeper(self, node: str) -> None:
        kill(self.made.process("agent.keeper", node))

    def start(self, machine: str) -> None:
        """The agent or the controller runs there (again)."""
        (self.agent if machine in NODES else self.controller)(machine)

    def fail(self, machine: str) -> None:
        """The power of the machine fails: the others hear nothing of it any more, and everything there ends."""
        self.network.cut([machine], ADDRESSES)
        self.network.end(machine)
        self.consuls.forget(machine)
        (self.agents if machine in NODES else self.controllers).pop(machine, None)

    def boot(self, machine: str) -> None:
        """The machine is there again, with the disk it had."""
        self.network.join([machine], ADDRESSES)
        self.consuls.start(machine)
        self.start(machine)

    def stand_still(self, pid: int) -> None:
        self.stopped.append(pid)
        signal_all([pid], signal.SIGSTOP)

    def go_on(self) -> None:
        signal_all(self.stopped, signal.SIGCONT)
        self.stopped.clear()

    # -- looking

    def leader(self) -> str:
        """The controller that leads, as Consul says; empty while nobody does."""
        for machine in SERVERS:
            try:
                found = self.consuls.ask(machine, f"kv/tdie/{self.made.name}/leader?consistent")
            except OSError:
                continue
            if not found or not found[0].get("Session"):
                return ""
            return str(json.loads(base64.b64decode(found[0]["Value"]))["name"])
        return ""

    def led(self, *, but: str = "", within: float = 60.0) -> str:
        """Who leads, once somebody does (who is not this one)."""

        def look() -> str:
            found = self.leader()
            return found if found != but else ""

        found: str = until(look, f"somebody leads who is not '{but}'", seen=self.logs, within=within)
        return found

    def plain(self) -> dict[str, tuple[str, int, int]]:
        """Replica without a lease → its node, pid and restarts, told by a leader that has heard of every node."""
        rows: dict[str, tuple[str, int, int]] = {}
        for row in self.made.see(well, "all is well")["instances"]:
            for one in row["replicas"] if row["name"] == "sleep" else ():
                rows[one["name"]] = (one["node"], one["pid"], one["restarts"])
        return rows

    def registered(self) -> set[str]:
        """Replicas that Consul shows as healthy."""
        found = self.consuls.ask(DESK, "health/state/passing")
        words = [each["ServiceID"].split("/") for each in found]
        return {each[-1] for each in words if len(each) == 4 and each[1] == self.made.name}

    def problems(self, node: str) -> dict[str, str]:
        """What the node says is wrong with it, asked at the node itself."""
        token = self.made.token_file.read_text().strip()
        url = f"http://{ADDRESSES[node]}:5100/api/node/report"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=5) as answer:
            return {each["code"]: each["detail"] for each in json.loads(answer.read())["problems"]}

    def logs(self) -> str:
        return f"{self.made.logs()}\n{self.consuls.logs()}"

    def heal(self) -> None:
        """Everything is joined, runs and goes on again."""
        self.go_on()
        self.network.join(ADDRESSES, ADDRESSES)
        self.consuls.start(*(machine for machine in ADDRESSES if machine not in self.consuls.running))
        for machine in (*CONTROLLERS, *NODES):
            if machine not in self.agents and machine not in self.controllers:
                self.start(machine)


def well(status: Status) -> bool:
    """Whether somebody leads, and says that every node is alive and everything runs as it should."""
    alive = [node for node in status["nodes"] if node["presence"] == "alive"]
    return bool(status["leading"] and status["converged"]) and len(alive) == len(NODES)


@contextmanager
def rig(
    binary: Path,
    *,
    hcl: str = "",
    agent_words: Sequence[str] = (),
    controller_words: Sequence[str] = (),
    **cluster_spec: Any,
) -> Iterator[Rig]:
    """Consul runs on all machines and knows them; nothing of ours does yet. All of it is taken down again."""
    with network(ADDRESSES) as lines, lines.inside(DESK), system(LOCAL, NODES, **cluster_spec) as made:
        clients = [name for name in ADDRESSES if name not in SERVERS]
        consuls = Consuls(lines, binary, made.folder / "consul", SERVERS, clients, hcl)
        found = Rig(lines, consuls, made, agent_words, controller_words)
        try:
            consuls.start(*ADDRESSES)
            consuls.ready()
            yield found
            made.stop()  # in the orderly way, while Consul is there: leases are given back, nothing is left
        finally:
            found.go_on()
            for machine in ADDRESSES:
                if machine != DESK:
                    lines.end(machine)
            consuls.close()
