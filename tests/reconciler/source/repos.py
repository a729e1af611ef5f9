"""Real Git repositories for tests, made with the git program."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

CLUSTER = """\
apiVersion: tdie/v1
kind: Cluster
metadata: {name: demo}
spec:
  nodes: [{name: a, labels: {zone: x}}, {name: b}]
"""
PACKAGES = """\
apiVersion: tdie/v1
kind: Package
metadata: {name: sleeper}
spec: {version: 1.0.0, source: {path: packages/sleeper}}
"""
MANIFEST = """\
{"name": "sleeper", "version": "1.0.0", "runtime": "exec", "command": ["sleep", "1000"],
 "defaultConfiguration": {"seconds": 5, "deep": {"a": 1, "b": 2}},
 "settingsSchema": {"type": "object", "additionalProperties": false, "properties": {
   "seconds": {"type": "integer", "minimum": 1}, "quiet": {"type": "boolean"}, "text": {"type": "string"},
   "deep": {"type": "object"}}}}
"""
BASE = {"cluster.yaml": CLUSTER, "packages.yaml": PACKAGES, "packages/sleeper/manifest.json": MANIFEST}


def instance(name: str, spec: str = "", *, package: str = "sleeper@1.0.0", count: str = "replicas: 1") -> str:
    """An Instance document; `spec` is appended to its spec, indented by two."""
    head = f"apiVersion: tdie/v1\nkind: Instance\nmetadata: {{name: {name}}}\nspec:\n  package: {package}\n  {count}\n"
    return head + "".join(f"  {line}\n" for line in spec.splitlines())


GOOD = {**BASE, "one.yaml": instance("one")}


def git(*args: str, cwd: Path, stdin: bytes | None = None) -> str:
    """The output of a git command that reads no configuration of this machine."""
    env = {
        **os.environ,
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "Tester",
        "GIT_AUTHOR_EMAIL": "tester@example.org",
        "GIT_COMMITTER_NAME": "Tester",
        "GIT_COMMITTER_EMAIL": "tester@example.org",
    }
    done = subprocess.run(["git", *args], cwd=cwd, env=env, input=stdin, capture_output=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


class Repo:
    """A bare origin and a work tree that pushes into it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.origin, self.work = folder / "origin.git", folder / "work"
        git("init", "-q", "--bare", "-b", "main", str(self.origin), cwd=folder)
        git("init", "-q", "-b", "main", str(self.work), cwd=folder)
        git("remote", "add", "origin", str(self.origin), cwd=self.work)

    def write(self, files: Mapping[str, str | None]) -> None:
        """Files of the work tree; None removes one."""
        for name, text in files.items():
            file = self.work / name
            if text is None:
                file.unlink()
            else:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(text)

    def commit(self, files: Mapping[str, str | None], message: str = "change", *, push: bool = True) -> str:
        """The id of a new commit, pushed."""
        self.write(files)
        git("add", "-A", cwd=self.work)
        git("commit", "-q", "--allow-empty", "-m", message, cwd=self.work)
        if push:
            self.push()
        return self.head()

    def push(self, *options: str) -> None:
        git("push", "-q", *options, "origin", "HEAD:main", cwd=self.work)

    def head(self) -> str:
        return git("rev-parse", "HEAD", cwd=self.work)
