"""New versions arrive before anything stops, and old ones are still there: forward, back by Git, and back without it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from agent.packages.digest import content_digest
from reconciler.children import alive
from tests.conftest import ConsulServer
from tests.e2e.system import NODES, System, instance, kill, package, pids, replicas, sleeper, system, until

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def shared(consul_server: ConsulServer) -> Iterator[System]:
    """Two controllers, three nodes; `sleep` and `each` run sleeper@1.0.0 beside one another."""
    with system(consul_server.http, environ={"TDIE_CONTROLLER_BEAT_TTL": "1"}) as made:
        made.up("--controllers", "2")
        yield made


def version(number: str) -> dict[str, str | None]:
    """The files that bring a version of sleeper and let `sleep`, and nothing else, run it."""
    return {
        f"packages/sleeper-{number}/manifest.json": sleeper(number),
        f"sleeper-{number}.yaml": package("sleeper", number, path=f"packages/sleeper-{number}"),
        "sleep.yaml": instance("sleep", package=f"sleeper@{number}", replicas=3, placement={"spread": "node"}),
    }


def digest(number: str) -> str:
    return content_digest({"manifest.json": (sleeper(number).encode(), False)})


def runs(shared: System) -> dict[str, str]:
    """Replica of `sleep` → the package it runs."""
    return {name: row["package"] for name, row in replicas(shared.status()).items() if name.startswith("sleep.")}


def ours(shared: System) -> dict[str, int]:
    """Everything that must not notice a deployment: agents, keepers and their zygotes."""
    found, hosts = {}, set(shared.pids().values())  # hosts that were forked look like their zygote
    for node in NODES:
        found[f"agent of {node}"] = shared.process("agent", node)
        found[f"keeper of {node}"] = keeper = shared.process("agent.keeper", node)
        zygotes = [
            c.pid for c in psutil.Process(keeper).children() if "agent.zygote" in c.cmdline() and c.pid not in hosts
        ]
        assert len(zygotes) == 1
        found[f"zygote of {node}"] = zygotes[0]
    return found


def others(pids: dict[str, int]) -> dict[str, int]:
    return {name: pid for name, pid in pids.items() if not name.startswith("sleep.")}


def served(shared: System) -> int:
    """How often any controller or agent has handed out a package, counted where packages come from."""
    logs = [file.stem for file in (shared.data / "logs").glob("*.log")]
    return sum(shared.said(name, "package served") for name in logs)


def leader(shared: System) -> str:
    return str(json.loads(shared.key("leader") or "{}").get("name", ""))


@contextmanager
def another_leads(shared: System) -> Iterator[None]:
    """The leader is killed and the other controller leads; afterwards the killed one is back."""
    gone = leader(shared)
    up = json.loads((shared.data / "up.json").read_text())["pid"]
    os.kill(up, signal.SIGSTOP)  # it would start the killed one again, which might win
    try:
        kill(shared.process("reconciler", gone))
        until(lambda: leader(shared) not in ("", gone), "the other controller leads")
        yield
    finally:
        os.kill(up, signal.SIGCONT)
    until(lambda: shared.processes("reconciler", gone), "the killed controller is started again")


def test_nothing_stops_before_every_target_node_has_the_new_version(shared: System) -> None:
    before, mine = shared.settled(), ours(shared)
    # n3 cannot install it: there is a file where the package belongs.
    obstacle = shared.data / "nodes" / "n3" / "packages" / digest("2.0.0")
    obstacle.touch()
    pushed = shared.repo.push(version("2.0.0"))
    status = shared.see(
        lambda s: any("PACKAGE_FAILED" in hold for row in s["instances"] for hold in row["holds"]),
        "n3 cannot install it",
    )
    assert status["git"]["commit"] == pushed
    for node in ("n1", "n2"):
        assert (shared.data / "nodes" / node / "packages" / digest("2.0.0") / "manifest.json").exists()
    assert shared.pids() == before
    assert all(alive(pid) for pid in before.values())

    obstacle.unlink()
    after = shared.settled(pushed, within=90)
    assert runs(shared) == {f"sleep.{n}": "sleeper@2.0.0" for n in range(3)}
    assert not any(before[f"sleep.{n}"] == after[f"sleep.{n}"] for n in range(3))
    assert others(after) == others(before)
    assert ours(shared) == mine
    # Two versions side by side: on every node `each` still runs 1.0.0.
    rows = replicas(shared.status())
    side_by_side: dict[str, set[str]] = {node: set() for node in NODES}
    for row in rows.values():
        side_by_side[row["node"]].add(row["package"])
    assert all({"sleeper@1.0.0", "sleeper@2.0.0"} <= there for there in side_by_side.values())


def test_git_revert_and_rollback_fetch_nothing_also_under_another_leader(shared: System) -> None:
    shared.settled(shared.repo.push(version("2.0.0") | {"note.txt": "two"}))
    shared.settled(good := shared.repo.push({"note.txt": "two, and well"}))
    forward = shared.settled(bad := shared.repo.push(version("3.0.0"), "faster"))
    mine, fetched = ours(shared), served(shared)
    assert fetched > 0

    # git revert: 2.0.0 is still on every node.
    shared.repo.git("revert", "--no-edit", bad)
    back = shared.settled(pushed(shared))
    assert set(runs(shared).values()) == {"sleeper@2.0.0"}
    assert others(back) == others(forward)
    assert (ours(shared), served(shared)) == (mine, fetched)

    # The bad one again, then `tdie rollback`, which a leader carries out that has never built 2.0.0.
    shared.repo.git("revert", "--no-edit", "HEAD")
    bad = pushed(shared)
    shared.settled(bad)
    assert set(runs(shared).values()) == {"sleeper@3.0.0"}
    with another_leads(shared):
        shared.settled(bad)
        asked = shared.asked("rollback", "--to", good[:12])
        assert (asked.returncode, "CONFIRM" in asked.stderr) == (1, True)
        assert "replace     sleep.0" in asked.stdout
        assert "[rollback] (package 3.0.0 → 2.0.0" in asked.stdout
        done = shared.asked("rollback", "--to", good[:12], "--reason", "it breaks orders", "--yes")
        assert done.returncode == 0, done.stderr
        status = shared.see(lambda s: s["settled"] and s["git"]["rollback"], "rolled back")
        assert set(runs(shared).values()) == {"sleeper@2.0.0"}
        assert (status["git"]["commit"], status["git"]["tip"], status["converged"]) == (good, bad, False)
        assert status["git"]["rollback"]["from"] == bad
        assert others(shared.pids()) == others(forward)
        assert (ours(shared), served(shared)) == (mine, fetched)
        told = shared.asked("status").stdout
        assert told.splitlines()[0].startswith(f"{shared.name}: ROLLED BACK")
        assert f"ROLLED BACK from {bad[:8]} by " in told
        assert "it breaks orders" in told
        assert "tdie rollback --cancel" in told


def test_it_lasts_over_leaders_until_a_newer_commit_comes(shared: System) -> None:
    shared.settled(good := shared.repo.push(version("2.0.0") | {"note.txt": "good"}))
    shared.settled(bad := shared.repo.push(version("3.0.0"), "faster"))
    assert shared.asked("rollback", "--reason", "it breaks orders", "--yes").returncode == 0
    before = pids(shared.see(lambda s: s["settled"] and s["git"]["rollback"], "rolled back to the last good commit"))
    with another_leads(shared):
        status = shared.see(lambda s: s["settled"], "the next leader knows it")
        assert (status["git"]["commit"], status["git"]["tip"]) == (good, bad)
        assert shared.asked("plan", "--in-force").stdout.startswith(
            "No changes. The fleet runs what the commit rolled back"
        )
    assert shared.pids() == before

    rejected = shared.repo.push({"sleep.yaml": "kind: Nonsense"})
    status = shared.see(lambda s: s["git"]["problems"], "a newer commit that is no good does not end it")
    assert (status["git"]["commit"], status["git"]["tip"]) == (good, rejected)
    assert shared.pids() == before

    newer = shared.repo.push(version("2.0.0") | {"note.txt": None}, "slower again")
    assert shared.settled(newer) == before  # the same processes: nothing of it is different
    assert shared.status()["git"]["rollback"] is None

    items = json.loads(shared.asked("history", "-o", "json").stdout)["items"]
    last = [(one["commit"], one["cause"], one["result"]) for one in items[:4]]
    assert last == [
        (newer, "commit", "healthy"),
        (rejected, "commit", "rejected"),
        (good, "rollback", "healthy"),
        (bad, "commit", "rolled back"),
    ]
    assert items[2]["why"] == "it breaks orders"


def test_it_can_be_taken_back(shared: System) -> None:
    shared.settled(shared.repo.push(version("2.0.0") | {"note.txt": "again"}))
    tip = shared.repo.push(version("3.0.0"), "faster")
    before = shared.settled(tip)
    assert shared.asked("rollback", "--yes").returncode == 0
    shared.see(lambda s: s["settled"] and s["git"]["rollback"], "rolled back to the last good commit")
    assert set(runs(shared).values()) == {"sleeper@2.0.0"}
    done = shared.asked("rollback", "--cancel")
    assert done.returncode == 0, done.stderr
    after = shared.settled(tip)
    assert set(runs(shared).values()) == {"sleeper@3.0.0"}
    assert others(after) == others(before)
    again = shared.asked("rollback", "--cancel")
    assert (again.returncode, "NO_ROLLBACK" in again.stderr) == (1, True)


def test_a_version_that_does_not_run_is_taken_back_by_itself(shared: System) -> None:
    update = {"autoRevert": True, "minHealthyTime": "2s", "maxParallel": 1}
    policy = {"replicas": 3, "update": update, "restart": {"attempts": 0}, "placement": {"spread": "node"}}
    broken = json.loads(sleeper("6.6.6")) | {"command": ["sh", "-c", "echo no such table >&2; exit 3"]}
    good = shared.repo.push({"sleep.yaml": instance("sleep", package="sleeper@1.0.0", **policy)}, "may revert itself")
    before = shared.settled(good)
    until(lambda: "stable" in shared.key("record/rollouts/sleep"), "it is remembered that it ran well")
    bad = shared.repo.push(
        {
            "packages/broken/manifest.json": json.dumps(broken),
            "broken.yaml": package("sleeper", "6.6.6", path="packages/broken"),
            "sleep.yaml": instance("sleep", package="sleeper@6.6.6", **policy),
        },
        "does not run",
    )
    status = shared.see(lambda s: s["settled"] and s["git"]["rollback"], "it is taken back")
    assert (status["git"]["commit"], status["git"]["tip"]) == (good, bad)
    assert status["git"]["rollback"]["automatic"]
    after = pids(status)
    assert others(after) == others(before)
    assert sum(before[f"sleep.{n}"] != after[f"sleep.{n}"] for n in range(3)) == 1  # only one of three was ever touched
    told = shared.asked("status").stdout
    assert "by itself (update.autoRevert of sleep)" in told
    assert "1/3 unhealthy" in told
    newest = json.loads(shared.asked("history", "-o", "json").stdout)["items"][:2]
    assert [(one["commit"], one["result"]) for one in newest] == [(good, "healthy"), (bad, "rolled back")]
    repaired = shared.repo.push({"sleep.yaml": instance("sleep", package="sleeper@1.0.0", **policy)}, "repaired")
    assert others(shared.settled(repaired)) == others(before)  # a newer commit that runs ends it


def test_canaries_wait_for_a_person(shared: System) -> None:
    update = {"canary": 1, "minHealthyTime": "0s", "maxParallel": "100%"}
    policy = {"replicas": 3, "update": update, "placement": {"spread": "node"}}
    before = shared.settled(shared.repo.push({"bird.yaml": instance("bird", package="sleeper@1.0.0", **policy)}))
    until(lambda: "stable" in shared.key("record/rollouts/bird"), "it is remembered that it ran well")
    tip = shared.repo.push({"bird.yaml": instance("bird", package="sleeper@1.0.0", settings={"word": "two"}, **policy)})
    waits = "CANARY_WAITS: canary bird.0 is healthy: 'tdie approve bird' goes on"
    shared.see(lambda s: any(waits in row["holds"] for row in s["instances"]), "the canary is healthy")
    assert {name for name, pid in shared.pids().items() if pid != before[name]} == {"bird.0"}
    unknown = shared.asked("approve", "nobody", "--yes")
    assert (unknown.returncode, "nothing of nobody is to be changed" in unknown.stderr) == (1, True)
    done = shared.asked("approve", "bird", "--yes")
    assert "approved 2 change(s)" in done.stdout
    assert "past the canaries of bird" in done.stdout
    after = shared.settled(tip)
    assert {name for name, pid in after.items() if pid != before[name]} == {"bird.0", "bird.1", "bird.2"}


def pushed(shared: System) -> str:
    shared.repo.git("push", "--quiet", "origin", "HEAD:main")
    return shared.repo.git("rev-parse", "HEAD")
