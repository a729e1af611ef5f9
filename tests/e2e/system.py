"""The real system for end-to-end tests: a bare Git repository, `tdie up` on a Consul of ours, and nothing left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from agent.errors import TdieError
from agent.keeper.cgroups import of_this_machine
from agent.keeper.linux import keeper_id
from reconciler.children import alive, leftovers
from reconciler.connect import leader, spot

NODES = ("n1", "n2", "n3")
FAST = {"minHealthyTime": "0s", "maxParallel": "100%"}
LOOK = 0.03  # seconds between two looks at a condition
PATIENCE = 45.0  # seconds a condition may take on a busy machine

Status = dict[str, Any]


class Gone(AssertionError):
    """The condition did not come true; the message says what was seen last."""


def until(
    condition: Callable[[], Any], what: str, *, seen: Callable[[], object] = str, within: float = PATIENCE
) -> Any:
    """The condition's first true value; fails with what was seen when it takes too long."""
    deadline = time.monotonic() + within
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            raise Gone(f"not within {within:g} s: {what}\n{seen()}")
        time.sleep(LOOK)


# ---------------------------------------------------------------------------------------------------------- documents


def instance(name: str, **spec: Any) -> str:
    """An Instance document that is carried out at once."""
    body = {"update": FAST, **spec}
    return yaml.safe_dump({"apiVersion": "tdie/v1", "kind": "Instance", "metadata": {"name": name}, "spec": body})


def cluster(name: str, nodes: tuple[str, ...] = NODES, **spec: Any) -> str:
    """The Cluster document; more than one document may leave Git at a time unless said otherwise."""
    body = {"nodes": [{"name": node, "labels": {"zone": node}} for node in nodes], "sync": {"maxPrune": "50%"}, **spec}
    return yaml.safe_dump({"apiVersion": "tdie/v1", "kind": "Cluster", "metadata": {"name": name}, "spec": body})


def package(name: str, version: str = "1.0.0", **source: str) -> str:
    spec = {"version": version, "source": source}
    return yaml.safe_dump({"apiVersion": "tdie/v1", "kind": "Package", "metadata": {"name": name}, "spec": spec})


def sleeper(version: str = "1.0.0") -> str:
    """The manifest of an exec package: it says a word, and stays."""
    manifest = {
        "name": "sleeper",
        "version": version,
        "runtime": "exec",
        "command": ["sh", "-c", 'echo "the word is $0"; exec sleep 86400', "{settings.word}"],
        "defaultConfiguration": {"word": "none"},
        "settingsSchema": {
            "type": "object",
            "properties": {"word": {"type": "string"}},
            "additionalProperties": False,
        },
    }
    return json.dumps(manifest, indent=2)


def documents(name: str, inbox: Path, nodes: tuple[str, ...] = NODES, **spec: Any) -> dict[str, str]:
    """File → text of a small good repository: a python component, an exec program, one of it per node."""
    return {
        "cluster.yaml": cluster(name, nodes, **spec),
        "packages.yaml": "---\n".join(
            (
                package("file-watcher", "1.1.0", builtin="file-watcher"),
                package("basic-publisher", builtin="basic-publisher"),
                package("sleeper", path="packages/sleeper"),
            )
        ),
        "packages/sleeper/manifest.json": sleeper(),
        "watch.yaml": instance(
            "watch",
            package="file-watcher@^1.0",
            replicas=2,
            settings={"path": str(inbox), "filter": "*.xml"},
            publisher={"package": "basic-publisher@^1.0"},
            placement={"spread": "node"},
        ),
        "sleep.yaml": instance(
            "sleep",
            package="sleeper@1.0.0",
            replicas=len(nodes),
            settings={"word": "one"},
            placement={"spread": "node"},
        ),
        "each.yaml": instance("each", package="sleeper@1.0.0", perNode=1),
    }


# --------------------------------------------------------------------------------------------------------------- Git


@dataclass
class Repository:
    """A bare origin and a work folder beside it, made with the git program and nothing of this user's settings."""

    folder: Path
    home: Path

    @property
    def origin(self) -> Path:
        return self.folder / "origin.git"

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def make(self) -> None:
        self.git("init", "--quiet", "--bare", "--initial-branch=main", str(self.origin), at=self.folder)
        self.git("clone", "--quiet", str(self.origin), str(self.work), at=self.folder)
        self.git("config", "user.name", "Tester")
        self.git("config", "user.email", "tester@example.org")
        self.git("symbolic-ref", "HEAD", "refs/heads/main")

    def git(self, *words: str, at: Path | None = None) -> str:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        environ |= {"HOME": str(self.home), "GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0"}
        done = subprocess.run(
            ["git", *words], cwd=at or self.work, env=environ, capture_output=True, text=True, timeout=30, check=False
        )
        assert done.returncode == 0, f"git {' '.join(words)}: {done.stderr}"
        return done.stdout.strip()

    def commit(self, files: Mapping[str, str | None], subject: str = "change") -> str:
        """The id of a new commit with these files (None: gone) on the branch of the work folder."""
        for name, text in files.items():
            path = self.work / name
            if text is None:
                path.unlink()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", subject)
        return self.git("rev-parse", "HEAD")

    def push(self, files: Mapping[str, str | None], subject: str = "change") -> str:
        """The id of a new commit with these files, pushed."""
        made = self.commit(files, subject)
        self.git("push", "--quiet", "origin", "HEAD:main")
        return made


# ------------------------------------------------------------------------------------------------------------ system


@dataclass
class System:
    """One cluster on this machine, with a folder, a repository and a Consul of its own."""

    name: str
    folder: Path
    consul: str
    repo: Repository
    environ: dict[str, str]
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _last: Status = field(default_factory=dict)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def inbox(self) -> Path:
        return self.folder / "inbox"

    # -- running it

    def tdie(self, *words: str, at: Path | None = None, within: float = 90.0) -> subprocess.CompletedProcess[str]:
        """One `tdie` command that has ended, whatever its exit code."""
        return subprocess.run(
            [sys.executable, "-m", "reconciler", *words],
            cwd=at or self.folder, env=self.environ, capture_output=True, text=True, timeout=within, check=False,
        )  # fmt: skip

    def asked(self, *words: str, at: Path | None = None) -> subprocess.CompletedProcess[str]:
        """One `tdie` command told which cluster to ask."""
        return self.tdie(*words, "--cluster", self.name, "--token-file", str(self.token_file), at=at)

    @property
    def token_file(self) -> Path:
        return self.data / "cluster.token"

    def up(self, *more: str) -> None:
        """`tdie up --detach` has seen every replica healthy."""
        done = self.tdie("up", str(self.repo.origin), "--detach", "--data", str(self.data), "--deadline", "60", *more)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.logs()}"

    def controller(self, name: str, *more: str) -> subprocess.Popen[bytes]:
        """One controller as a process of its own."""
        words = ["--cluster", self.name, "--name", name, "--repository", str(self.repo.origin)]
        words += ["--data", str(self.data / name), "--token-file", str(self._token())]
        return self.start(name, "reconciler", "controller", *words, *more)

    def agent(self, node: str, *more: str) -> subprocess.Popen[bytes]:
        """One agent as a process of its own, which takes its hosts along when it is told to end."""
        words = ["--cluster", self.name, "--node", node, "--data", str(self.data / "nodes" / node)]
        return self.start(node, "agent", *words, "--token-file", str(self._token()), "--stop-hosts", *more)

    def _token(self) -> Path:
        if not self.token_file.exists():
            self.data.mkdir(mode=0o700, exist_ok=True)
            self.token_file.touch(0o600)
            self.token_file.write_text(f"{uuid.uuid4().hex}\n")
        return self.token_file

    def start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        """A program of ours in the background, in a session of its own."""
        log = self.data / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", *words],
                cwd=self.folder, env=self.environ, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip
        self.started.append(process)
        return process

    def stop(self) -> None:
        """Everything is told to end in the orderly way, and leaves nothing behind."""
        unexpected: list[str] = []
        if (self.data / "up.json").exists():
            done = self.tdie("down", "--data", str(self.data))
            if done.returncode:
                unexpected.append(done.stdout + done.stderr)
        for process in self.started:
            process.terminate()
        for process in self.started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
        unexpected += leftovers(self.data)
        assert not unexpected, f"left behind: {unexpected}\n{self.logs()}"

    def close(self) -> None:
        """Everything is ended, and nothing was left by the orderly way."""
        try:
            self.stop()
        finally:
            for process in self.started:
                if process.poll() is None:
                    process.kill()
                process.wait(10)
            for line in leftovers(self.data):  # by the pids found, each of them marked with this folder
                if found := re.match(r"pid (\d+):", line):
                    with suppress(ProcessLookupError):
                        os.kill(int(found[1]), signal.SIGKILL)
            for data in self.data.glob("nodes/*"):  # a keeper that was killed leaves its empty control groups
                of_this_machine(keeper_id(data)).close()

    def logs(self, size: int = 3000) -> str:
        """The ends of all logs, for a failure's message."""
        files = sorted((self.data / "logs").glob("*.log")) if self.data.exists() else []
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-size:]}" for file in files)

    # -- looking at it

    def status(self) -> Status:
        """The leader's status document; an empty one while nobody leads."""
        try:
            with leader(spot(self.name, self.consul, self.token_file)) as master:
                self._last = master.get("/status")
        except (TdieError, FileNotFoundError) as error:
            return {"nodes": [], "instances": [], "converged": False, "leading": False, "why": str(error)}
        return self._last

    def see(self, condition: Callable[[Status], Any], what: str, *, within: float = PATIENCE) -> Status:
        """The first status of which the condition is true."""

        def look() -> Status | None:
            status = self.status()
            return status if status["leading"] and condition(status) else None

        found: Status = until(look, what, seen=self._seen, within=within)
        return found

    def _seen(self) -> str:
        return f"{json.dumps(self.status(), indent=1)}\n{self.logs()}"

    def settled(self, commit: str = "", *, within: float = PATIENCE) -> dict[str, int]:
        """Replica → pid once everything is healthy (at this commit)."""
        status = self.see(
            lambda s: s["converged"] and commit in ("", s["git"]["commit"]), f"converged at {commit[:8]}", within=within
        )
        return pids(status)

    def pids(self) -> dict[str, int]:
        return pids(self.see(lambda _: True, "a leader"))

    def said(self, name: str, event: str) -> int:
        """How often this program has logged the event."""
        return (self.data / "logs" / f"{name}.log").read_text(errors="replace").count(f'"event": "{event}"')

    def key(self, name: str) -> str:
        """The value of one of the cluster's keys in Consul; empty when there is none."""
        try:
            with urllib.request.urlopen(f"http://{self.consul}/v1/kv/tdie/{self.name}/{name}?raw", timeout=5) as answer:
                return str(answer.read().decode())
        except (urllib.error.URLError, OSError):
            return ""

    def hosts(self, replica: str) -> list[int]:
        """Processes that carry the mark of this replica, seen without asking anybody."""
        wanted = f"TDIE_REPLICA={replica}".encode()
        keepers = {f"TDIE_KEEPER={keeper_id(node)}".encode() for node in self.data.glob("nodes/*")}
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended in between
                marks = (process / "environ").read_bytes().split(b"\0")
                if wanted in marks and not keepers.isdisjoint(marks):
                    found.append(int(process.name))
        return found

    def another(self, replica: str, old: int) -> int:
        """The pid of the replica once everything is healthy with another process than the old one."""
        status = self.see(
            lambda s: s["converged"] and replicas(s)[replica]["pid"] not in (old, None), f"{replica} is another process"
        )
        return int(replicas(status)[replica]["pid"])

    # -- its processes, each found by the folder that only this system has

    def process(self, program: str, node: str) -> int:
        """The pid of the one process of this kind: `agent`, `agent.keeper` or `reconciler`, for a node or controller."""
        found = self.processes(program, node)
        assert len(found) == 1, f"{program} of {node}: {found}"
        return found[0]

    def processes(self, program: str, node: str) -> list[int]:
        folder = str(self.data / ("" if program == "reconciler" else "nodes") / node)
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                words = process.cmdline()
                if words[1:2] == ["-I"]:
                    words = [words[0], *words[2:]]
                mine = any(word == folder or word.startswith(folder + "/") for word in words)
                if words[1:3] == ["-m", program] and mine:
                    found.append(process.pid)
        return found


def pids(status: Status) -> dict[str, int]:
    """Replica → pid, as the status says."""
    return {one["name"]: one["pid"] for row in status["instances"] for one in row["replicas"]}


def replicas(status: Status) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for row in status["instances"] for one in row["replicas"]}


def kill(pid: int) -> None:
    """SIGKILL, and the process is gone."""
    os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(pid), f"pid {pid} is gone", within=10)


@contextmanager
def system(
    consul: str, nodes: tuple[str, ...] = NODES, *, environ: Mapping[str, str] | None = None, **cluster_spec: Any
) -> Iterator[System]:
    """A system whose first commit is pushed and which is not started; ended and removed afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="tdie-e2e-"))
    name = f"e2e-{uuid.uuid4().hex[:8]}"
    home = folder / "home"
    for made in (home, folder / "inbox"):
        made.mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CONSUL_", "TDIE_", "GIT_"))}
    found = System(
        name, folder, consul, Repository(folder, home),
        {**kept, "HOME": str(home), "CONSUL_HTTP_ADDR": consul, "NO_COLOR": "1", **(environ or {})},
    )  # fmt: skip
    found.repo.make()
    found.repo.push(documents(name, found.inbox, nodes, **cluster_spec), "first")
    try:
        yield found
    finally:
        try:
            found.close()
        finally:
            shutil.rmtree(folder, ignore_errors=True)
