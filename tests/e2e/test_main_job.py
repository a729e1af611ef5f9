"""Push YAML, watch it happen: what is pushed runs, only what changed gets new processes, what is broken changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from reconciler.children import alive
from tests.conftest import ConsulServer
from tests.e2e.system import System, instance, package, replicas, sleeper, system

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


@pytest.fixture
def up(consul_server: ConsulServer) -> Iterator[System]:
    """A running, converged system with nine replicas."""
    with system(consul_server.http) as made:
        made.up()
        yield made


def changed(before: dict[str, int], after: dict[str, int]) -> set[str]:
    """Replicas that came, went, or got another process."""
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_only_what_changed_gets_new_processes(up: System) -> None:
    first = up.settled()
    assert sorted(first) == [
        "each.n1.0",
        "each.n2.0",
        "each.n3.0",
        "sleep.0",
        "sleep.1",
        "sleep.2",
        "watch.0",
        "watch.1",
    ]
    assert all(alive(pid) for pid in first.values())

    # Another version of the exec package for one instance: its replicas are new processes, the others stay.
    pushed = up.repo.push(
        {
            "packages/sleeper-2/manifest.json": sleeper("2.0.0"),
            "more.yaml": package("sleeper", "2.0.0", path="packages/sleeper-2"),
            "sleep.yaml": instance("sleep", package="sleeper@2.0.0", replicas=3, placement={"spread": "node"}),
        }
    )
    second = up.settled(pushed)
    assert changed(first, second) == {"sleep.0", "sleep.1", "sleep.2"}
    assert not any(alive(first[f"sleep.{n}"]) for n in range(3))
    assert {one["package"] for name, one in replicas(up.status()).items() if name.startswith("sleep.")} == {
        "sleeper@2.0.0"
    }

    # Settings of a python component: the same process takes them.
    watch = up.repo.work / "watch.yaml"
    before = {name: one["spec"] for name, one in replicas(up.status()).items()}
    pushed = up.repo.push({"watch.yaml": watch.read_text().replace("*.xml", "*.json")})
    third = up.settled(pushed)
    after = {name: one["spec"] for name, one in replicas(up.status()).items()}
    assert changed(second, third) == set()
    assert {name for name in before if before[name] != after[name]} == {"watch.0", "watch.1"}

    # The same documents in another file: nothing at all.
    up.repo.git("mv", "watch.yaml", "renamed.yaml")
    assert up.settled(up.repo.push({})) == third


def test_a_broken_file_changes_nothing(up: System) -> None:
    before = up.settled()
    good = (up.repo.work / "sleep.yaml").read_text()
    bad = up.repo.push({"sleep.yaml": good.replace("replicas: 3", "replicsa: 3")}, "broken")
    status = up.see(lambda s: s["git"]["problems"], "the commit is rejected")
    assert status["git"]["tip"] == bad
    assert status["git"]["commit"] != bad
    line = good.splitlines().index("  replicas: 3") + 1
    told = up.asked("status").stdout
    assert f"sleep.yaml:{line}:3 " in told
    assert "replicsa" in told
    assert "did you mean" in told
    assert up.pids() == before
    pushed = up.repo.push({"sleep.yaml": good.replace("word: one", "word: two")}, "mended")
    assert changed(before, up.settled(pushed)) == {"sleep.0", "sleep.1", "sleep.2"}


def test_what_leaves_git_is_stopped_but_never_too_much(up: System) -> None:
    first = up.settled()
    second = up.settled(up.repo.push({"sleep.yaml": None}))
    assert changed(first, second) == {"sleep.0", "sleep.1", "sleep.2"}
    assert not any(alive(first[f"sleep.{n}"]) for n in range(3))

    gone = up.repo.push(
        {"each.yaml": None, "watch.yaml": None, "new.yaml": instance("new", package="sleeper@1.0.0", replicas=1)}
    )
    held = up.see(
        lambda s: s["git"]["commit"] == gone and any("PRUNE_HELD" in h for row in s["instances"] for h in row["holds"]),
        "the prune is held",
    )
    assert {c["replica"] for c in held["changes"] if c["hold"] and c["hold"]["reason"] == "PRUNE_HELD"} == second.keys()
    up.see(
        lambda s: any(r["name"] == "new" and r["healthy"] == 1 for r in s["instances"]), "the rest of the commit runs"
    )
    assert all(alive(pid) for pid in second.values())
    assert "PRUNE_HELD" in up.asked("status").stdout

    refused = up.tdie("apply", "--yes", "--cluster", up.name)
    assert refused.returncode == 1, "no token was given"
    done = up.asked("apply", "--yes", "--confirm-prune")
    assert done.returncode == 0, done.stderr
    assert up.settled(gone).keys() == {"new.0"}
    assert not any(alive(pid) for pid in second.values())
