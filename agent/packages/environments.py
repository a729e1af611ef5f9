"""Environments for packages with dependencies: a venv each, made by uv, which appears by one rename and never changes.

Wheels that the package brings are used first and make a registry unnecessary when they are all that is needed. Nothing is built
from source: building would run foreign code inside the agent, and needs compilers that machines do not have.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog
import uv

from agent.errors import TdieError, Waiting
from agent.logs import redacted
from agent.packages.dependencies import BadDependency, environment_of, names_of
from agent.packages.protocol import Installed
from agent.packages.store import disk_errors, remove_tree

log = structlog.get_logger("packages")

PATIENCE = 600.0  # seconds for one run of uv
_CACHE = ".cache"
_PARTIAL = ".partial-"
_NETWORK = ("connect", "network", "timed out", "dns", "error sending request", "failed to fetch", "tls", "offline")
_SHOWN = 600  # characters of what uv says


class Environments:
    """The folder `environments/` of one machine. Blocking; callers use a thread for everything but `all`."""

    def __init__(self, root: Path, *, patience: float = PATIENCE) -> None:
        self.root = root
        self._patience = patience
        self._made: dict[str, str] = {}

    def open(self) -> None:
        """Read what is there, and collect what a crash left half-done."""
        self.root.mkdir(parents=True, exist_ok=True)
        for entry in sorted(self.root.iterdir()):
            if entry.name.startswith(_PARTIAL):
                remove_tree(entry)
            elif entry.name != _CACHE and interpreter(entry).exists():
                self._made[entry.name] = str(interpreter(entry).absolute())

    def all(self) -> Mapping[str, str]:
        """Interpreters by the name of their environment."""
        return self._made

    def make(self, packages: Sequence[Installed]) -> str:
        """The interpreter of the environment in which these packages run together; made if it was not there.

        Raises BadDependency naming the requirement, Waiting (PKG_DEPENDENCY) when a registry cannot be reached, DiskFull.
        """
        name = environment_of(packages)
        if name in self._made and Path(self._made[name]).exists():
            return self._made[name]
        requirements = sorted({text for item in packages for text in item.dependencies})
        what = " with ".join(str(item.package) for item in packages if item.dependencies)
        wheels = [folder for item in packages for folder in wheel_folders(Path(item.content_root))]
        partial = self.root / f"{_PARTIAL}{uuid.uuid4().hex}"
        try:
            with disk_errors():
                self._run(["venv", "--quiet", "--python", sys.executable, "--relocatable", str(partial)], what, ())
                self._install(partial, requirements, wheels, what)
                target = self.root / name
                remove_tree(target)
                partial.rename(target)
        finally:
            remove_tree(partial)
        log.info("environment made", package=what, requirements=requirements)
        self._made[name] = str(interpreter(target).absolute())
        return self._made[name]

    def remove(self, digest: str) -> None:
        """No environment of this package is left. The download cache goes too, so that it cannot grow for ever."""
        for name in [name for name in self._made if digest in name.split("+")]:
            del self._made[name]
            doomed = self.root / f"{_PARTIAL}{uuid.uuid4().hex}"
            (self.root / name).rename(doomed)
            remove_tree(doomed)
            remove_tree(self.root / _CACHE)

    def _install(self, folder: Path, requirements: list[str], wheels: list[Path], what: str) -> None:
        command = [
            "pip",
            "install",
            "--quiet",
            "--no-build",
            "--compile-bytecode",
            "--python",
            str(interpreter(folder)),
        ]
        command += [word for place in wheels for word in ("--find-links", str(place))]
        if wheels:
            try:
                self._run([*command, "--no-index", *requirements], what, requirements)
                return
            except TdieError as error:
                log.info(
                    "the package does not bring all it needs, a registry is asked", package=what, error=error.detail
                )
        self._run([*command, *requirements], what, requirements)

    def _run(self, words: list[str], what: str, requirements: Sequence[str]) -> None:
        env = {**os.environ, "UV_CACHE_DIR": str(self.root / _CACHE), "UV_PYTHON_DOWNLOADS": "never", "NO_COLOR": "1"}
        env.pop("VIRTUAL_ENV", None)
        try:
            ended = subprocess.run(
                [uv.find_uv_bin(), *words],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                cwd=self.root,
                env=env,
                timeout=self._patience,
                check=False,  # its status is judged below
            )
        except subprocess.TimeoutExpired as error:
            text = f"{what}: its dependencies were not installed within {self._patience:.0f} s"
            raise Waiting(text, code=BadDependency.code) from error
        if ended.returncode:
            raise _told(ended.stderr.decode(errors="replace"), what, requirements)


def interpreter(environment: Path) -> Path:
    """Where the Python of an environment is."""
    return environment / "bin" / "python"


def wheel_folders(root: Path) -> list[Path]:
    """The folders of a package that hold wheels: `dependencies/` first, then the content root itself."""
    return [folder for folder in (root / "dependencies", root) if any(folder.glob("*.whl"))]


def _told(said: str, what: str, requirements: Sequence[str]) -> TdieError:
    """What uv could not do, named after the requirement it speaks of."""
    text = " ".join(redacted(said).replace("╰─▶", " ").replace("×", " ").split())
    if "No space left" in text or "os error 28" in text:
        return Waiting(f"{what}: no room for its dependencies", code="DISK_FULL")
    folded = text.lower().replace("_", "-")
    named = [requirement for requirement, name in names_of(requirements).items() if name in folded]
    detail = f"{what}: cannot install {', '.join(named or requirements) or 'an environment'}: {text[:_SHOWN]}"
    if any(word in folded for word in _NETWORK):
        return Waiting(detail, code=BadDependency.code)
    return BadDependency(detail)
