"""Whatever happens to the repository, the last good commit stays in force, people are told, and it heals by itself."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.conftest import ConsulServer
from tests.e2e.system import Status, System, system

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def shared(consul_server: ConsulServer) -> Iterator[System]:
    """A running system; its origin lets its only branch be deleted."""
    with system(consul_server.http, sync={"interval": "1s", "maxPrune": "50%"}) as made:
        made.repo.git("config", "receive.denyDeleteCurrent", "ignore", at=made.repo.origin)
        made.up()
        yield made


def told(made: System, code: str) -> Status:
    """The status once it says this of Git; nothing else has changed."""
    before = made.pids()
    commit = made.status()["git"]["commit"]
    status = made.see(lambda s: code in json.dumps(s["git"]), f"the status says {code}")
    assert status["git"]["commit"] == commit
    assert not status["converged"]
    assert code in made.asked("status").stdout
    assert made.pids() == before
    return status


def test_an_origin_that_is_away(shared: System) -> None:
    before = shared.settled()
    away = shared.repo.origin.with_name("away.git")
    shared.repo.origin.rename(away)
    told(shared, "GIT_UNREACHABLE")
    away.rename(shared.repo.origin)
    assert shared.settled() == before


def test_a_rewritten_history(shared: System) -> None:
    before = shared.settled()
    old = shared.repo.git("rev-parse", "HEAD")
    shared.repo.git("commit", "--quiet", "--amend", "--message", "never was")
    shared.repo.git("push", "--quiet", "--force", "origin", "HEAD:main")
    told(shared, "GIT_NON_FF")
    shared.repo.git("reset", "--quiet", "--hard", old)
    shared.repo.git("push", "--quiet", "--force", "origin", "HEAD:main")
    assert shared.settled(old) == before


def test_a_deleted_branch(shared: System) -> None:
    before = shared.settled()
    shared.repo.git("push", "--quiet", "origin", ":main")
    told(shared, "GIT_REF_MISSING")
    pushed = shared.repo.push({"README": "back\n"})
    assert shared.settled(pushed) == before


def test_a_commit_without_any_instance(shared: System) -> None:
    before = shared.settled()
    kept = {name: (shared.repo.work / name).read_text() for name in ("watch.yaml", "sleep.yaml", "each.yaml")}
    shared.repo.push(dict.fromkeys(kept))
    told(shared, "EMPTY_DESIRED_STATE")
    assert shared.settled(shared.repo.push({**kept})) == before
