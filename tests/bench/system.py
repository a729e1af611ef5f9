"""The real system for a bench: a bare Git repository, an embedded Consul, one controller, one agent, each its own process."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from agent.client import http_client
from agent.consul.process import embedded_command, free_port, running
from reconciler.children import Child, leftovers

CLUSTER = "bench"
NODE = "bench-node"
STARTED = 60.0  # seconds the system may take to come up
SETTLED = 45.0  # seconds one change may take

COMPONENT = """
from agent.sdk import Component

VERSION = "{version}"

class Idle(Component):
    async def start(self):
        self.log.info("version %s", VERSION)
"""


@dataclass
class Bench:
    """One running system; `show` and `settled` are what a bench needs of it."""

    work: Path
    bare: Path
    api: str
    consul: str
    children: list[Child] = field(default_factory=list)
    after: int = 0  # number of the last event seen
    commits: int = 0

    def __post_init__(self) -> None:
        self.http = http_client()

    def commit(self, files: Mapping[str, str], subject: str) -> str:
        """The id of a commit with these files on top of the last one; its objects are in the bare repository, no branch is."""
        for name, text in files.items():
            path = self.work / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.commits += 1
        git(self.work, "add", "--all")
        git(self.work, "commit", "--quiet", "--message", subject)
        git(self.work, "push", "--quiet", "--force", "origin", "HEAD:refs/bench/ready")
        return git(self.work, "rev-parse", "HEAD")

    def show(self, commit: str) -> float:
        """The branch is moved to a commit whose objects are there already; returns the moment before `git update-ref` began."""
        began = time.perf_counter()
        git(self.bare, "update-ref", "refs/heads/main", commit)
        return began

    def push(self) -> float:
        """The branch is moved by a real `git push`; returns the moment before it began."""
        began = time.perf_counter()
        git(self.work, "push", "--quiet", "origin", "HEAD:refs/heads/main")
        return began

    async def settled(self, commit: str) -> float:
        """The moment at which the controller had told us that all of this commit is healthy: its events are long-polled."""
        until = time.perf_counter() + SETTLED
        while time.perf_counter() < until:
            events = await self._get(f"/events?after={self.after}&wait=5")
            ended = time.perf_counter()
            for event in events["items"]:
                self.after = event["number"]
                if event["code"] == "HEALTHY" and commit[:8] in event["detail"]:
                    status = await self._get("/status")
                    if not (status["converged"] and status["git"]["commit"] == commit):
                        raise RuntimeError(f"{event} but {status}")
                    return ended
        raise RuntimeError(f"commit {commit[:8]} is not healthy after {SETTLED:g} s: {await self._why_not()}")

    async def _why_not(self) -> list[str]:
        rows = [row for instance in (await self._get("/status"))["instances"] for row in instance["replicas"]]
        return [f"{row['name']} {row['state']} {row['lastError']}" for row in rows if not row["healthy"]][:5]

    async def quiet(self, commit: str, replicas: int) -> None:
        """Consul shows that many replicas of this commit too, so that nothing of it is left to do in the next round."""
        async with asyncio.timeout(SETTLED):
            while True:
                answer = await self.http.get(f"http://{self.consul}/v1/health/state/passing")
                if sum(commit[:7] in check["Output"] for check in answer.json()) >= replicas:
                    return
                await asyncio.sleep(0.1)

    async def _get(self, path: str) -> Any:
        answer = await self.http.get(self.api + "/api/master" + path)
        answer.raise_for_status()
        return answer.json()


def documents(instances: Mapping[str, tuple[int, str]], versions: tuple[str, ...]) -> str:
    """A repository of one node: both versions installed there from the start, instances as name → (replicas, version)."""
    listed = ", ".join(f"idle@{version}" for version in versions)
    docs = [
        f"apiVersion: tdie/v1\nkind: Cluster\nmetadata: {{name: {CLUSTER}}}\nspec:\n"
        f"  nodes: [{{name: {NODE}}}]\n  packages: [{listed}]\n  sync: {{maxPrune: 100%}}\n"
    ]
    docs += [
        f"apiVersion: tdie/v1\nkind: Package\nmetadata: {{name: idle}}\n"
        f"spec: {{version: {version}, source: {{path: packages/idle-{version}}}}}\n"
        for version in versions
    ]
    docs += [
        f"apiVersion: tdie/v1\nkind: Instance\nmetadata: {{name: {name}}}\nspec:\n  package: idle@{version}\n"
        f"  replicas: {replicas}\n  update: {{maxParallel: 100%, minHealthyTime: 0s}}\n"
        for name, (replicas, version) in instances.items()
    ]
    return "---\n".join(docs)


def packages(versions: tuple[str, ...]) -> dict[str, str]:
    """The files of pure-Python packages of which nothing but the version differs."""
    files = {}
    for version in versions:
        manifest = {
            "name": "idle",
            "version": version,
            "description": "does nothing",
            "kind": "component",
            "componentType": "tdie_bench_idle:Idle",
            "contentRoot": "content",
        }
        files[f"packages/idle-{version}/manifest.json"] = json.dumps(manifest)
        files[f"packages/idle-{version}/content/tdie_bench_idle.py"] = COMPONENT.replace("{version}", version)
    return files


@asynccontextmanager
async def system(folder: Path, files: Mapping[str, str]) -> AsyncIterator[Bench]:
    """All processes run and the first commit is healthy; on exit every one of them is gone."""
    bare, work = folder / "origin.git", folder / "work"
    git(folder, "init", "--quiet", "--bare", "--initial-branch=main", str(bare))
    git(folder, "init", "--quiet", "--initial-branch=main", str(work))
    git(work, "config", "user.name", "bench")
    git(work, "config", "user.email", "bench@example.org")
    git(work, "remote", "add", "origin", str(bare))
    consul_port, api_port = free_port(), free_port()
    command = embedded_command(None, consul_port, "bench-consul")
    async with running(command, consul_port, "bench-consul", folder / "consul.log") as consul:
        bench = Bench(work, bare, f"http://127.0.0.1:{api_port}", str(consul.address))
        first = bench.commit(files, "first")
        bench.show(first)
        bench.children = _children(folder, bare, str(consul.address), api_port)
        try:
            for child in bench.children:
                child.start()
            await _answers(bench)
            await bench.settled(first)
            yield bench
        finally:
            await bench.http.aclose()
            for child in bench.children:
                await child.stop(30.0)
    if left := leftovers(folder):
        raise RuntimeError(f"still there: {left}")


def _children(folder: Path, bare: Path, consul: str, api_port: int) -> list[Child]:
    controller = [sys.executable, "-m", "reconciler", "controller", "--cluster", CLUSTER, "--name", "bench"]
    controller += ["--repository", str(bare), "--ref", "main", "--data", str(folder / "controller")]
    controller += ["--consul", consul, "--port", str(api_port)]
    agent = [sys.executable, "-m", "agent", "--cluster", CLUSTER, "--node", NODE, "--data", str(folder / "node")]
    agent += ["--consul", consul, "--stop-hosts"]
    return [
        Child("controller", controller, folder / "controller.log"),
        Child(NODE, agent, folder / "agent.log"),
    ]


async def _answers(bench: Bench) -> None:
    """The controller's API answers."""
    async with asyncio.timeout(STARTED):
        while True:
            try:
                await bench.http.get(f"{bench.api}/livez")
                return
            except httpx.HTTPError:
                for child in bench.children:
                    if child.ended:
                        raise RuntimeError(f"{child.name} ended: {child.tail()}") from None
                await asyncio.sleep(0.05)


def git(folder: Path, *words: str) -> str:
    environ = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(
        ["git", *words], cwd=folder, env=environ, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()
