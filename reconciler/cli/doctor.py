"""Commands that help people to use tdie: doctor, completion, hook, keeper."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from agent import __version__
from agent.errors import Invalid, TdieError
from reconciler.cli.main import app
from reconciler.cli.options import HERE, At
from reconciler.cli.out import Output, paint, say, say_json, table
from reconciler.doctor import Finding, of_cluster, of_disk, worst_first

hook = App(name="hook", help="Have documents checked before they are pushed.")
app.command(hook)

HOOK = """#!/bin/sh
# Written by `tdie hook install`: what is not valid is not pushed. `git push --no-verify` goes past it.
exec {tdie} validate {folder}
"""
_COLOURS = {"fail": "red", "warn": "yellow", "ok": "green"}


@app.command
def doctor(*, output: Output = "text", at: At = HERE) -> int:
    """What is wrong, worst first, and what to do about it: Consul, leader, Git, nodes, instances, this machine.

    Exit code 1 when anything fails.
    """
    found = worst_first([*_cluster(at), *_machine()])
    if output == "json":
        say_json({"format": "tdie/doctor/1", "items": [asdict(finding) for finding in found]})
    else:
        rows = [[f.level.upper() if f.level == "fail" else f.level, f.what, _words(f)] for f in found]
        for finding, line in zip(found, table(rows, ["", "", ""])[1:], strict=True):
            say(paint(line, _COLOURS[finding.level]))
    return 1 if any(finding.level == "fail" for finding in found) else 0


def _words(finding: Finding) -> str:
    return finding.detail + (f"  ({finding.hint})" if finding.hint else "")


def _cluster(at: At) -> Iterator[Finding]:
    try:
        with at.leader() as master:
            doc = master.get("/status")
    except TdieError as error:
        hints = {"UNAUTHORIZED": "name the token: --token-file, or TDIE_TOKEN_FILE"}
        yield Finding("fail", "cluster", f"{error.code} {error.detail}", error.hint or hints.get(error.code, ""))
        return
    yield Finding("ok", "controller", f"{master.api} leads cluster {doc['cluster']} with epoch {doc['epoch']}")
    yield from of_cluster(doc, __version__)


def _machine() -> Iterator[Finding]:
    usage = shutil.disk_usage(Path.cwd())
    yield of_disk(str(Path.cwd()), usage.total, usage.free)
    python = ".".join(map(str, sys.version_info[:3]))
    consul = shutil.which("consul")
    yield Finding(
        "ok", "machine", f"tdie {__version__}, Python {python}, consul program: {consul or 'none (embedded)'}"
    )


@app.command
def completion(shell: Literal["bash", "zsh", "fish"]) -> int:
    """Print the completion script of a shell: for bash, put `source <(tdie completion bash)` into ~/.bashrc."""
    say(app.generate_completion(prog_name="tdie", shell=shell).rstrip("\n"))
    return 0


@hook.command
def install(*, folder: Path = Path("."), force: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Check the documents in FOLDER before every push from its repository.

    Parameters
    ----------
    folder
        Folder of the documents, inside a Git repository.
    force
        Replace a hook that is there already.
    """
    path = _git(folder, "rev-parse", "--git-path", "hooks/pre-push")
    inside = _git(folder, "rev-parse", "--show-prefix") or "."
    file = (folder / path).resolve()
    if file.exists() and not force and "tdie hook install" not in file.read_text(errors="replace"):
        raise Invalid("there is a hook already", code="HOOK_EXISTS", where=str(file), hint="--force replaces it")
    file.parent.mkdir(parents=True, exist_ok=True)
    on_path = shutil.which("tdie")
    program = shlex.quote(on_path) if on_path else f"{shlex.quote(sys.executable)} -m reconciler"
    file.write_text(HOOK.format(tdie=program, folder=shlex.quote(inside)))
    file.chmod(file.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    say(f"{file}: what is not valid is not pushed")
    return 0


def _git(folder: Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=30, check=False
        )
    except FileNotFoundError as error:
        raise Invalid("the git program is not on PATH", code="GIT_MISSING") from error
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise Invalid(said[0] if said else "is no Git repository", code="NO_REPOSITORY", where=str(folder))
    return done.stdout.strip()


@app.command(help_flags=[], version_flags=[])
def keeper(*words: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> int:
    """Run the keeper of this machine by itself; the same as python -m agent.keeper, with the same options."""
    os.execv(sys.executable, [sys.executable, "-I", "-m", "agent.keeper", *words])
