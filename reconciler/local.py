"""The whole system on one machine: Consul, controllers, and an agent for every node that the repository lists."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.consul.which import running_consul
from agent.errors import Invalid, TdieError, Waiting
from reconciler.children import Child, alive, leftovers, start_time
from reconciler.client import MasterClient
from reconciler.connect import leader, spot
from reconciler.source.source import GitSource
from reconciler.source.sourced import Sourced


def say(text: str) -> None:
    """A line for the person at the terminal, at once."""
    print(text, flush=True)  # noqa: T201


STOP_WAIT = 30.0  # seconds for a child to stop by itself
LOOK = 1.0  # seconds between looks at the status while nothing happens


@dataclass(frozen=True, slots=True)
class Plan:
    """What `tdie up` was asked for."""

    repository: str
    ref: str
    data: Path
    controllers: int = 1

    @property
    def state(self) -> Path:
        return self.data / "up.json"


async def run_foreground(plan: Plan) -> int:
    """Everything runs until SIGINT or SIGTERM; then everything is stopped. 0, or 1 when something is left."""
    if (owner := _owner(plan.state)) is not None:
        raise TdieError(f"already up (pid {owner})", code="ALREADY_UP", where=str(plan.data), hint="tdie down stops it")
    told = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    plan.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    sourced = await _first_look(plan)
    desired = sourced.desired
    if desired is None:
        raise _unusable(plan, sourced)
    try:
        async with running_consul(plan.data / "consul", os.environ) as consul:
            say(consul.sentence)
            system = System(plan, desired.cluster.name, str(consul.address))
            try:
                await system.run(list(desired.cluster.nodes), told)
            finally:
                say("stopping …")
                await system.stop()
    finally:
        plan.state.unlink(missing_ok=True)
    left = leftovers(plan.data)
    for line in left:
        say(f"still there: {line}")
    if not left:
        say("everything is stopped")
    return 1 if left else 0


async def _first_look(plan: Plan) -> Sourced:
    source = GitSource(
        plan.repository, plan.ref, mirror_dir=plan.data / "look" / "mirror", cache_dir=plan.data / "look" / "packages"
    )
    try:
        return await source.look()
    finally:
        await source.close()


def _unusable(plan: Plan, sourced: Sourced) -> TdieError:
    if sourced.trouble is not None:
        return sourced.trouble
    lines = "\n".join(f"  {problem}" for problem in sourced.problems)
    return Invalid(
        f"commit {sourced.commit[:8]} cannot be used:\n{lines}", code="COMMIT_REJECTED", where=plan.repository
    )


class System:
    """The children of one `tdie up`, kept running until told otherwise."""

    def __init__(self, plan: Plan, cluster: str, consul: str) -> None:
        self._plan = plan
        self._cluster = cluster
        self._consul = consul
        self._token_file = _token_file(plan.data / "cluster.token")
        self._children: dict[str, Child] = {}
        self._keeping: set[asyncio.Task[None]] = set()
        self._logs = plan.data / "logs"
        self._api = ""

    async def run(self, nodes: list[str], told: asyncio.Event) -> None:
        """Start everything, show what happens, keep it running until `told`."""
        for number in range(1, self._plan.controllers + 1):
            self._start(f"controller-{number}", self._controller(number))
        for node in nodes:
            self._start(node, self._agent(node))
        self._write_state(nodes)
        say(
            f"cluster {self._cluster}: {self._plan.controllers} controller(s), {len(nodes)} agent(s); logs in {self._logs}"
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
        words += ["--repository", self._plan.repository, "--ref", self._plan.ref]
        words += ["--data", str(self._plan.data / f"controller-{number}"), "--consul", self._consul]
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
            str(self._plan.data / "nodes" / node),
        ]
        return [*words, "--consul", self._consul, "--token-file", str(self._token_file), "--stop-hosts"]

    def _write_state(self, nodes: list[str]) -> None:
        state = {
            "pid": os.getpid(),
            "startTime": start_time(os.getpid()),
            "cluster": self._cluster,
            "consul": self._consul,
            "tokenFile": str(self._token_file),
            "repository": self._plan.repository,
            "nodes": nodes,
        }
        part = self._plan.state.with_suffix(".part")
        part.write_text(json.dumps(state, indent=2) + "\n")
        part.replace(self._plan.state)

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
            if (text := _progress(status)) != headline:
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


def _progress(status: dict[str, Any]) -> str:
    wanted = sum(row["wanted"] for row in status["instances"])
    healthy = sum(min(row["healthy"], row["wanted"]) for row in status["instances"])
    git = status["git"]
    if git["problems"]:
        first = git["problems"][0]
        return f"commit {git['tip'][:8]} rejected: {first['file']}:{first['line']}:{first['column']} {first['message']}"
    state = "converged" if status["converged"] else f"{len(status['changes'])} change(s) to go"
    return f"{healthy}/{wanted} replicas healthy, {state}"


# ------------------------------------------------------------------------------------------------ detached


def run_detached(plan: Plan, deadline: float) -> int:
    """The system runs in the background; returns 0 when all is healthy, 1 when the deadline has passed first."""
    return asyncio.run(_detached(plan, deadline))


async def _detached(plan: Plan, deadline: float) -> int:
    if (owner := _owner(plan.state)) is not None:
        raise TdieError(f"already up (pid {owner})", code="ALREADY_UP", where=str(plan.data), hint="tdie down stops it")
    words = [sys.executable, "-m", "reconciler", "up", plan.repository, "--ref", plan.ref]
    words += ["--data", str(plan.data), "--controllers", str(plan.controllers)]
    child = Child("up", words, plan.data / "logs" / "up.log")
    child.start()
    try:
        async with asyncio.timeout(deadline):
            await _until_converged(plan, child)
    except TimeoutError:
        say(f"not everything is healthy after {deadline:g} s; it goes on: tdie status, {child.log}")
        return 1
    except TdieError as error:
        say(str(error))
        return 1
    say("everything is healthy: tdie status shows it, tdie down stops it")
    return 0


async def _until_converged(plan: Plan, child: Child) -> None:
    headline = ""
    while True:
        if child.ended:
            raise TdieError("it ended at once:\n" + child.tail(), code="UP_FAILED")
        with suppress(TdieError, FileNotFoundError):
            doc = await asyncio.to_thread(status, plan)
            if (text := _progress(doc)) != headline:
                headline = text
                say(text)
            if doc["converged"]:
                return
        await asyncio.sleep(0.2)


def status(plan: Plan) -> dict[str, Any]:
    """The status document of the cluster that this plan runs."""
    state = json.loads(plan.state.read_text())
    with leader(spot(state["cluster"], state["consul"], Path(state["tokenFile"]))) as master:
        found: dict[str, Any] = master.get("/status")
    return found


def stop(data: Path) -> list[str]:
    """What `tdie up` started with this data folder is stopped; returns what is left, a line each."""
    owner = _owner(data / "up.json")
    if owner is not None:
        say(f"stopping pid {owner} …")
        os.kill(owner, signal.SIGTERM)
        asyncio.run(_until_gone(owner))
    return leftovers(data)


async def _until_gone(pid: int) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(STOP_WAIT * 2 + 10):
            while alive(pid):
                await asyncio.sleep(0.05)


def _owner(state: Path) -> int | None:
    """The pid of the `tdie up` that wrote this file, if it still is that process."""
    try:
        found = json.loads(state.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise TdieError(
            "is damaged", code="STATE_FILE", where=str(state), hint="remove it when nothing runs"
        ) from error
    pid = int(found["pid"])
    return pid if alive(pid) and start_time(pid) == found["startTime"] else None


def _token_file(path: Path) -> Path:
    """A file with the cluster's token, readable by its owner only."""
    if not path.exists():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
    return path
