"""`make demo` and `make demo-check`: the sample repository in a fresh Git repository, running on this machine."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sqlite3
import subprocess
import sys
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any

from agent.errors import TdieError
from reconciler import detached
from reconciler.children import leftovers
from reconciler.local import run_foreground
from reconciler.up_request import UpRequest, say

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "sample-repo"
PLACE = Path("/tmp/tdie-sample")  # where the sample's instances read and write
FOLDERS = tuple(PLACE / name for name in ("inbox", "orders", "intake"))  # what they watch
RESULTS = PLACE / "results.sqlite"  # what the workflow ends in
DEADLINE = 120.0


def main() -> int:
    """The exit code of the demo."""
    words = argparse.ArgumentParser(prog="demo", description=__doc__)
    words.add_argument("--check", action="store_true", help="detached: start, push a change, verify, stop")
    words.add_argument("--folder", type=Path, default=ROOT / ".tdie" / "demo", help="where everything is kept")
    given = words.parse_args()
    folder: Path = given.folder.resolve()
    try:
        work = prepare(folder)
        request = UpRequest(repository=str(folder / "origin.git"), ref="main", data=folder / ".tdie")
        return check(request, work) if given.check else show(request, work)
    except TdieError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        return 130


def prepare(folder: Path) -> Path:
    """A fresh copy of the sample in a Git repository of its own with a bare origin; returns the work folder."""
    if left := leftovers(folder / ".tdie"):
        raise TdieError(
            "the last demo still runs: " + "; ".join(left), code="ALREADY_UP", hint="tdie down in that folder"
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for watched in FOLDERS:
        watched.mkdir(parents=True, exist_ok=True)
    work = folder / "work"
    shutil.copytree(SAMPLE, work)
    _git(folder, "init", "--quiet", "--bare", "--initial-branch=main", "origin.git")
    _git(work, "init", "--quiet", "--initial-branch=main")
    if not _git(work, "config", "--default", "", "user.email"):
        _git(work, "config", "user.name", "You")
        _git(work, "config", "user.email", "you@example.org")
    _git(work, "remote", "add", "origin", str(folder / "origin.git"))
    commit(work, "sample: three nodes, seven instances")
    return work


def commit(work: Path, subject: str) -> None:
    """Everything in the work folder is committed and pushed."""
    _git(work, "add", "--all")
    _git(work, "commit", "--quiet", "--message", subject)
    _git(work, "push", "--quiet", "--set-upstream", "origin", "main")


def _git(folder: Path, *words: str) -> str:
    environ = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(
        ["git", *words], cwd=folder, env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise TdieError(f"git {words[0]}: {done.stderr.strip()}", code="GIT", where=str(folder))
    return done.stdout.strip()


def show(request: UpRequest, work: Path) -> int:
    """The foreground demo: plan, convergence, and what to try."""
    say(_tdie("plan", "--against", "nothing", cwd=work))
    here = os.path.relpath(work)
    say(
        f"""
Try this in another shell:
    cd {here}
    sed -i 's/greeting: Hello/greeting: Welcome/' instances/greeter.yaml
    {os.path.relpath(ROOT / ".venv/bin/tdie", work)} plan                       # before you push
    git commit -am 'greet better' && git push            # and watch this window
    {os.path.relpath(ROOT / ".venv/bin/tdie", work)} status
Ctrl-C stops everything.
"""
    )
    return asyncio.run(run_foreground(request))


def _tdie(*words: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "reconciler", *words], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise TdieError(f"tdie {words[0]} failed: {done.stderr.strip()}", code="DEMO")
    return done.stdout.rstrip()


# ------------------------------------------------------------------------------------------------ demo-check


def check(request: UpRequest, work: Path) -> int:
    """Start, push a change, see the new processes and only those, stop, see nothing left. 0 when all of it is true."""
    try:
        _must(detached.run_detached(request, DEADLINE) == 0, "everything is healthy after the start")
        before = _replicas(request)
        _must(len(before) == 13, f"13 replicas run, found {len(before)}")
        asyncio.run(_workflow())
        greeter = work / "instances" / "greeter.yaml"
        greeter.write_text(greeter.read_text().replace("greeting: Hello", "greeting: Welcome"))
        commit(work, "greet better")
        asyncio.run(_until(request, _git(work, "rev-parse", "HEAD")))
        after = _replicas(request)
        changed = {name for name in before if before[name] != after.get(name)}
        _must(changed == {"greeter.0", "greeter.1"}, f"only the greeters are new processes, found {sorted(changed)}")
    finally:
        left = detached.stop(request.data)
    _must(not left, f"nothing is left: {left}")
    say("demo-check: 5 passed, 0 failed")
    return 0


def _must(true: bool, what: str) -> None:
    if not true:
        raise TdieError(what, code="DEMO_CHECK_FAILED")
    say(f"ok: {what}" if "found" not in what else f"ok: {what.split(', found')[0]}")


async def _workflow() -> None:
    """A file dropped into the watched folder is a row of the database: watcher, processor and writer, over the bus."""
    name = f"{uuid.uuid4().hex}.txt"
    (PLACE / "intake" / name).write_text(" hello \n")
    try:
        async with asyncio.timeout(DEADLINE):
            while (found := await asyncio.to_thread(_row, name)) is None:
                await asyncio.sleep(0.1)
    except TimeoutError as error:
        raise TdieError(f"{name} is no row after {DEADLINE:g} s", code="DEMO_CHECK_FAILED") from error
    _must(found == "HELLO", f"a dropped file is a row in the database, found {found}")


def _row(name: str) -> str | None:
    with closing(sqlite3.connect(RESULTS, timeout=10)) as db:
        row = db.execute("SELECT content FROM processed WHERE file = ?", (name,)).fetchone()
    return str(row[0]) if row else None


async def _until(request: UpRequest, head: str) -> None:
    """The commit is in force and everything is healthy; raises when that takes too long."""
    try:
        async with asyncio.timeout(DEADLINE):
            while True:
                status = await asyncio.to_thread(detached.status, request)
                if status["converged"] and status["git"]["commit"] == head:
                    return
                await asyncio.sleep(0.1)
    except TimeoutError as error:
        raise TdieError(
            f"commit {head[:8]} is not running everywhere after {DEADLINE:g} s", code="DEMO_CHECK_FAILED"
        ) from error


def _replicas(request: UpRequest) -> dict[str, tuple[Any, Any]]:
    """Replica → (pid, start) of every running replica."""
    status = detached.status(request)
    return {r["name"]: (r["pid"], r["startedAt"]) for row in status["instances"] for r in row["replicas"]}


if __name__ == "__main__":
    sys.exit(main())
