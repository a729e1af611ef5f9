"""The whole system on one machine: Consul, controllers, and an agent for every node that the repository lists."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
from pathlib import Path
from typing import Any

from agent.consul.which import running_consul
from agent.errors import Invalid, TdieError, Waiting
from reconciler.children import Child, leftovers
from reconciler.client import MasterClient
from reconciler.connect import leader, spot
from reconciler.source.source import GitSource
from reconciler.source.sourced import Sourced
from reconciler.up_request import UpRequest, progress, say

STOP_WAIT = 30.0  # seconds for a child to stop by itself
LOOK = 1.0  # seconds between looks at the status while nothing happens


async def run_foreground(request: UpRequest) -> int:
    """Everything runs until SIGINT or SIGTERM; then everything is stopped. 0, or 1 when something is left."""
    request.must_be_down()
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    request.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    sourced = await _first_look(request)
    desired = sourced.desired
    if desired is None:
        raise _unusable(request, sourced)
    try:
        async with running_consul(request.data / "consul", os.environ) as consul:
            say(consul.sentence)
            system = System(request, desired.cluster.name, str(consul.address))
            try:
                await system.run(list(desired.cluster.nodes), told)
            finally:
                say("stopping …")
                await system.stop()
    finally:
        request.state.unlink(missing_ok=True)
    left = leftovers(request.data)
    for line in left:
        say(f"still there: {line}")
    if not left:
        say("everything is stopped")
    return 1 if left else 0


async def _first_look(request: UpRequest) -> Sourced:
    source = GitSource(
        request.repository,
        request.ref,
        mirror_dir=request.data / "look" / "mirror",
        cache_dir=request.data / "look" / "packages",
        uploads_unknown=True,  # who has them is not running yet
    )
    try:
        return await source.look()
    finally:
        await source.close()


def _unusable(request: UpRequest, sourced: Sourced) -> TdieError:
    if sourced.trouble is not None:
        return sourced.trouble
    lines = "\n".join(f"  {problem}" for problem in sourced.problems)
    return Invalid(
        f"commit {sourced.commit[:8]} cannot be used:\n{lines}", code="COMMIT_REJECTED", where=request.repository
    )


class System:
    """The children of one `tdie up`, kept running until told otherwise."""

    def __init__(self, request: UpRequest, cluster: str, consul: str) -> None:
        self._request = request
        self._cluster = cluster
        self._consul = consul
        self._token_file = _token_file(request.data / "cluster.token")
        self._children: dict[str, Child] = {}
        self._keeping: set[asyncio.Task[None]] = set()
        self._logs = request.data / "logs"
        self._api = ""

    async def run(self, nodes: list[str], told: asyncio.Event) -> None:
        """Start everything, show what happens, keep it running until `told`."""
        for number in range(1, self._request.controllers + 1):
            self._start(f"controller-{number}", self._controller(number))
        for node in nodes:
            self._start(node, self._agent(node))
        self._write_state(nodes)
        say(
            f"cluster {self._cluster}: {self._request.controllers} controller(s), {len(nodes)} agent(s); logs in {self._logs}"
        )
        watching = asyncio.create_task(self._watch(), name="watch the cluster")
        try:
            await told.wait()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def stop(self) -> None:
        """Every child is stopped: controllers first, so that nothing is healed while the agents go."""
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)
        for wanted in ("controller-", ""):
            group = [child for name, child in self._children.items() if name.startswith("controller-") == bool(wanted)]
            await asyncio.gather(*(child.stop(STOP_WAIT) for child in group))

    def _start(self, name: str, words: list[str]) -> None:
        child = Child(name, [sys.executable, *words], self._logs / f"{name}.log")
        self._children[name] = child
        self._keeping.add(asyncio.create_task(child.keep_running(say), name=f"keep {name} running"))

    def _controller(self, number: int) -> list[str]:
        words = ["-m", "reconciler", "controller", "--cluster", self._cluster, "--name", f"controller-{number}"]
        words += ["--repository", self._request.repository, "--ref", self._request.ref]
        words += ["--data", str(self._request.data / f"controller-{number}"), "--consul", self._consul]
        return [*words, "--token-file", str(self._token_file), "--port", str(7776 + number)]

    def _agent(self, node: str) -> list[str]:
        words = [
            "-m",
            "agent",
            "--cluster",
            self._cluster,
            "--node",
            node,
            "--data",
            str(self._request.data / "nodes" / node),
        ]
        return [*words, "--consul", self._consul, "--token-file", str(self._token_file), "--stop-hosts"]

    def _write_state(self, nodes: list[str]) -> None:
        self._request.write_state(
            {
                "cluster": self._cluster,
                "consul": self._consul,
                "tokenFile": str(self._token_file),
                "nodes": nodes,
            }
        )

    # ------------------------------------------------------------------------------------------- what people see

    async def _watch(self) -> None:
        """Say what happens as plain lines; start agents for nodes that Git gains."""
        after, headline = 0, ""
        while True:
            try:
                events, status = await asyncio.to_thread(self._ask, after)
            except TdieError:
                self._api = ""  # the leader may have changed: find it again
                await asyncio.sleep(LOOK)
                continue
            for event in events:
                after = event["number"]
                if event["code"] not in ("CHANGING", "CONVERGED", "HEALTHY"):
                    say(f"{event['at'][11:19]}  {event['code']}  {event['detail']}")
            self._join(status["nodes"])
            if (text := progress(status)) != headline:
                headline = text
                say(f"          {text}")

    def _ask(self, after: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Events after this number (waits a little for them), and the status; in a thread."""
        if not self._api:
            with leader(spot(self._cluster, self._consul, self._token_file)) as found:
                self._api = found.api
        with MasterClient(self._api, self._token_file.read_text().strip()) as master:
            events = master.get("/events", after=after, wait=LOOK)["items"]
            status: dict[str, Any] = master.get("/status")
        if not status["leading"]:
            raise Waiting("this controller does not lead any more")
        return events, status

    def _join(self, nodes: list[dict[str, Any]]) -> None:
        for node in nodes:
            if node["listed"] and node["name"] not in self._children:
                say(f"          Git lists {node['name']}: starting its agent here")
                self._start(node["name"], self._agent(node["name"]))


def _token_file(path: Path) -> Path:
    """A file with the cluster's token, readable by its owner only."""
    if not path.exists():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
    return path
