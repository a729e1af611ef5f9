"""Suspend and resume, and a rewritten history that waits for a person, by the real commands on a real cluster."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import ConsulServer
from tests.e2e.system import System, instance, system

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def shared(consul_server: ConsulServer) -> Iterator[System]:
    with system(consul_server.http, ("n1",)) as made:
        made.up()
        yield made


def sleep(word: str) -> dict[str, str | None]:
    return {"sleep.yaml": instance("sleep", package="sleeper@1.0.0", replicas=1, settings={"word": word})}


def test_nothing_is_changed_while_it_is_suspended(shared: System) -> None:
    before = shared.settled()
    assert shared.asked("suspend", "--reason", "stock-taking").returncode == 0
    tip = shared.repo.push(sleep("suspended"))
    shared.see(lambda s: s["git"]["commit"] == tip and s["changes"], "the commit waits")
    told = shared.asked("status").stdout
    assert "! SUSPENDED: the cluster is suspended by " in told
    assert "stock-taking" in told
    assert shared.pids() == before
    wrong = shared.asked("resume", "sleep")
    assert (wrong.returncode, "NOT_SUSPENDED sleep is not suspended" in wrong.stderr) == (1, True)
    unknown = shared.asked("suspend", "nobody")
    assert (unknown.returncode, "INSTANCE_UNKNOWN" in unknown.stderr) == (1, True)
    done = shared.asked("resume")
    assert "stock-taking" in done.stdout
    assert shared.settled(tip)["sleep.0"] != before["sleep.0"]


def test_a_rewritten_history_waits_until_it_is_accepted(shared: System) -> None:
    nothing = shared.asked("accept", "abcdef0")
    assert (nothing.returncode, "NOTHING_TO_ACCEPT" in nothing.stderr) == (1, True)
    shared.settled(shared.repo.push(sleep("rewritten soon")))
    before = shared.pids()
    shared.repo.git("commit", "--quiet", "--amend", "--message", "rewritten")
    shared.repo.git("push", "--quiet", "--force", "origin", "HEAD:main")
    tip = shared.repo.git("rev-parse", "HEAD")
    status = shared.see(lambda s: "GIT_NON_FF" in s["git"]["trouble"], "it is held")
    assert f"tdie accept {tip[:12]}" in status["git"]["trouble"]
    assert "is not held: it is" in shared.asked("accept", "abcdef0").stderr
    assert shared.asked("accept", tip[:12]).returncode == 0
    assert shared.settled(tip) == before
