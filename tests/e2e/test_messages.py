"""The sample's workflow over the bus, on three nodes, while hosts and agents are killed: a thousand files are a thousand rows."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ConsulServer
from tests.e2e.system import System, cluster, instance, package, system, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SAMPLE = Path(__file__).resolve().parents[2] / "sample-repo" / "packages"
FILES = 1000  # good ones; a bad one comes with each 25th
STEP = FILES // 20  # files dropped at once
EVERY = 0.5  # seconds between two kills
RESTART = {"attempts": 1000, "delay": "100ms", "interval": "10m"}


def documents(made: System) -> dict[str, str | None]:
    """The workflow: one watcher, a processor on every node, one writer on another node than the watcher."""
    common: dict[str, Any] = {"restart": RESTART}
    bus = "bus@1.0.0"
    return {
        "watch.yaml": None,
        "sleep.yaml": None,
        "each.yaml": None,
        "cluster.yaml": cluster(made.name, sync={"maxPrune": "100%"}),
        "packages.yaml": "---\n".join(
            (
                package("file-watcher", "1.1.0", builtin="file-watcher"),
                package("bus", builtin="bus"),
                *(package(name, path=f"packages/{name}") for name in ("file-processor", "database-writer")),
            )
        ),
        "workflow.yaml": "---\n".join(
            (
                instance(
                    "intake", package="file-watcher@^1.0", replicas=1, settings={"path": str(made.inbox)},
                    publisher={"package": bus, "settings": {"topic": "files"}},
                    placement={"where": "zone == 'n1'"}, **common,
                ),
                instance(
                    "processor", package="file-processor@1.0.0", perNode=1,
                    settings={"inputPath": str(made.inbox), "watch": False, "retryDelaySeconds": 0.1, "maxRetries": 1},
                    subscribe=[{"topic": "files", "type": "FileWatcherMessage"}],
                    publisher={
                        "package": bus,
                        "settings": {"topic": "pulse", "routes": [{"type": "FileProcessed", "topic": "processed"}]},
                    },
                    **common,
                ),
                instance(
                    "writer", package="database-writer@1.0.0", replicas=1,
                    settings={"database": str(made.folder / "rows.sqlite"), "table": "processed"},
                    subscribe=[{"topic": "processed"}], placement={"where": "zone == 'n2'"}, **common,
                ),
            )
        ),
    }  # fmt: skip


@pytest.fixture(scope="module")
def workflow(consul_server: ConsulServer) -> Iterator[System]:
    with system(consul_server.http, environ={"TDIE_AGENT_MESSAGE_PAUSE": "0.01"}) as made:
        for name in ("file-processor", "database-writer"):
            shutil.copytree(SAMPLE / name, made.repo.work / "packages" / name)
        made.repo.push(documents(made), "workflow")
        made.up()
        yield made


def _drop(inbox: Path, numbers: range) -> tuple[set[str], set[str]]:
    """Names of good and bad files that are in the folder now, each of them there as a whole."""
    good: set[str] = set()
    bad: set[str] = set()
    for number in numbers:
        good.add(name := f"{number:04}.txt")
        (inbox / name).write_text(f" file {number} \n")
        if number % 25 == 7:
            bad.add(name := f"{number:04}-bad.txt")
            (inbox / name).write_bytes(b"\xff\xfe\xfd")
    return good, bad


def _rows(database: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(database, timeout=10)) as db:
        return db.execute("SELECT file, content FROM processed").fetchall()


def _kill_one(made: System, chance: random.Random) -> str:
    """SIGKILL to an agent or a host, whichever it is; nothing when it is not up at this moment."""
    victim = chance.choice(
        [*("agent n1", "agent n2", "agent n3"), "intake.0", "writer.0", *(f"processor.n{n}.0" for n in (1, 2, 3))]
    )
    found = made.processes("agent", victim.split()[1]) if victim.startswith("agent") else made.hosts(victim)
    for pid in found:
        with suppress(ProcessLookupError):
            os.kill(pid, 9)
    return victim if found else ""


def test_each_file_is_one_row_while_hosts_and_agents_are_killed(workflow: System) -> None:
    made, chance = workflow, random.Random(int(os.environ.get("TDIE_SEED", "20")))
    database, inbox = made.folder / "rows.sqlite", made.inbox
    began = time.monotonic()
    killed: list[str] = []
    good, bad = _drop(inbox, range(STEP))

    def all_there() -> bool:
        return len(_rows(database)) >= len(good) and {p.name for p in (inbox / "error").iterdir()} == bad

    for first in range(STEP, FILES, STEP):  # files and kills take turns
        time.sleep(EVERY)
        killed.append(_kill_one(made, chance))
        more_good, more_bad = _drop(inbox, range(first, min(first + STEP, FILES)))
        good, bad = good | more_good, bad | more_bad
    until(all_there, "every file is a row or in the error folder", seen=lambda: _seen(made, database), within=120)
    made.settled()
    rows = _rows(database)
    text = f"{sum(map(bool, killed))} kills, {time.monotonic() - began:.1f} s, {len(rows)} rows, {len(bad)} in the error folder"
    print(text)  # noqa: T201 - the figure of this run, shown by -s
    assert sorted(rows) == sorted((name, f"FILE {int(name[:4])}") for name in good)  # none missing, none twice


def test_a_dead_letter_is_seen_retried_and_dropped(workflow: System) -> None:
    made, database = workflow, workflow.folder / "rows.sqlite"
    with closing(sqlite3.connect(database, timeout=10)) as db, db:
        db.execute("ALTER TABLE processed RENAME TO hidden")  # from now on the writer fails
    names, _ = _drop(made.inbox, range(9000, 9002))

    def dead() -> list[dict[str, Any]]:
        done = made.asked("messages", "list", "--state", "dead", "-o", "json")
        assert done.returncode == 0, done.stderr
        found: list[dict[str, Any]] = json.loads(done.stdout)["items"]
        return found

    rows = until(lambda: found if len(found := dead()) == 2 else None, "two dead letters", seen=made.logs)
    assert {row["instance"] for row in rows} == {"writer"}
    assert {row["error"] for row in rows} == {"OperationalError: no such table: processed"}
    made.see(
        lambda s: any(p["code"] == "BUS_DEAD_LETTERS" for n in s["nodes"] for p in n["problems"]), "status says so"
    )
    shown = made.asked("messages", "show", rows[0]["id"])
    assert '"type": "FileProcessed"' in shown.stdout, shown.stderr
    with closing(sqlite3.connect(database, timeout=10)) as db, db:
        db.execute("ALTER TABLE hidden RENAME TO processed")
    dropped = made.asked("messages", "drop", rows[0]["id"])
    assert dropped.stdout == "1 message(s) dropped\n", dropped.stderr
    retried = made.asked("messages", "retry", "--all")
    assert retried.stdout == "1 dead letter(s) are tried again\n", retried.stderr
    until(lambda: names & {file for file, _ in _rows(database)}, "the retried one is a row", seen=made.logs)
    assert len(names & {file for file, _ in _rows(database)}) == 1
    assert dead() == []
    again = made.asked("messages", "drop", rows[0]["id"])
    assert (again.returncode, "MESSAGE_UNKNOWN" in again.stderr) == (1, True)
    assert made.asked("messages", "retry").returncode == 1


def _seen(made: System, database: Path) -> str:
    names = sorted(p.name for p in made.inbox.iterdir())
    return f"{len(_rows(database))} rows; in the folder: {names}\n{made.logs()}"
