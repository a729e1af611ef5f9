"""The commands as people and scripts use them: what they print where, and how they end."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from agent.__main__ import main as agent_main
from reconciler.cli.main import main
from tests.conftest import ConsulServer
from tests.e2e.system import NODES, Repository, System, system

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def idle(consul_server: ConsulServer) -> Iterator[System]:
    """A repository of two commits, of which nothing runs."""
    with system(consul_server.http) as made:
        sleep = (made.repo.work / "sleep.yaml").read_text()
        made.repo.push({"sleep.yaml": sleep.replace("word: one", "word: two")}, "second")
        yield made


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nonsense"], "--nonsense"),
        (["nonsense"], "nonsense"),
        (["validate", "--nonsense"], "--nonsense"),
        (["validate", "-o", "yaml"], "yaml"),
        (["plan", "-o"], "requires an argument"),
        (["plan", "--detailed-exitcode=perhaps"], "perhaps"),
        (["diff"], "REVISIONS"),
        (["get"], "KIND"),
        (["get", "everything"], "everything"),
        (["explain"], "SUBJECT"),
        (["logs", "watch.0", "--lines", "many"], "many"),
        (["up", "--controllers", "two"], "two"),
        (["up", "--deadline", "soon"], "soon"),
        (["down", "now"], "now"),
        (["controller", "--port", "http"], "http"),
        (["apply", "a", "b"], "b"),
        (["init", "cluster", "x"], "--repository"),
    ],
)
def test_wrong_options_exit_64_with_usage(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 64
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert "--help" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "words", [["--nonsense"], ["--port", "http"], ["--label", "zone"], ["--log-level", "loud"], ["now"]]
)
def test_wrong_options_of_the_agent(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        agent_main(words)
    assert ended.value.code == 64
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: tdie-agent")
    assert "Traceback" not in err


def test_status_of_nothing_says_what_to_do(idle: System) -> None:
    done = idle.tdie("status", "--cluster", idle.name)
    assert (done.returncode, done.stdout) == (1, "")
    assert "NO_LEADER" in done.stderr
    assert "tdie up" in done.stderr
    nowhere = idle.tdie("status", "--consul", "127.0.0.1:1")
    assert nowhere.returncode == 1
    assert "--consul" in nowhere.stderr
    assert "Traceback" not in done.stderr + nowhere.stderr


def test_validate_prints_what_was_asked_for(idle: System) -> None:
    work = idle.repo.work
    good = idle.tdie("validate", str(work))
    assert (good.returncode, good.stderr) == (0, "")
    assert f"valid: cluster {idle.name}, 3 node(s), 3 instance(s)" in good.stdout
    each = work / "each.yaml"
    kept = each.read_text()
    each.write_text(kept.replace("perNode: 1", "perNode: one"))
    try:
        found = json.loads(idle.tdie("validate", str(work), "-o", "json").stdout)
        (problem,) = found["problems"] if isinstance(found, dict) else found
        assert (problem["file"], problem["line"]) == ("each.yaml", kept.splitlines().index("  perNode: 1") + 1)
        github = idle.tdie("validate", ".", "-o", "github", at=work)
        assert github.returncode == 1
        assert github.stdout.startswith(f"::error file=each.yaml,line={problem['line']},col={problem['column']}")
        assert idle.tdie("validate", ".", "--rev", "HEAD", at=work).returncode == 0, "the commit itself is good"
    finally:
        each.write_text(kept)


def test_plan_against_a_revision_needs_no_cluster(idle: System) -> None:
    work = idle.repo.work
    nowhere = ["--consul", "127.0.0.1:1"]
    changed = idle.tdie("plan", "--against", "HEAD~1", "--detailed-exitcode", *nowhere, at=work)
    assert changed.returncode == 2, changed.stderr
    assert "sleep.0" in changed.stdout
    assert "watch" not in changed.stdout
    assert "Plan: " in changed.stdout
    same = idle.tdie("plan", "--against", "HEAD", "--detailed-exitcode", *nowhere, at=work)
    assert same.returncode == 0, same.stderr
    assert idle.tdie("plan", "--against", "HEAD~1", at=work).returncode == 0
    unknown = idle.tdie("plan", "--against", "no-such-branch", at=work)
    assert unknown.returncode == 1
    assert "no-such-branch" in unknown.stderr
    assert "Traceback" not in unknown.stderr
    assert "sleep" in idle.tdie("diff", "HEAD~1..HEAD", at=work).stdout


def test_a_saved_plan_is_carried_out_only_as_it_was_seen(consul_server: ConsulServer) -> None:
    with system(consul_server.http, sync={"mode": "manual"}) as made:
        made.controller("c1")
        for node in NODES:
            made.agent(node)
        made.see(
            lambda s: (
                len(s["changes"]) == 8
                and all(c["hold"] and c["hold"]["reason"] == "NOT_APPROVED" for c in s["changes"])
                and all(n["presence"] == "alive" for n in s["nodes"])
            ),
            "everything waits for a person",
        )
        saved = made.folder / "plan.json"
        assert made.asked("plan", "-o", "json", "--out", str(saved), "--detailed-exitcode").returncode == 2
        assert json.loads(saved.read_text())["format"] == "tdie/plan/1"
        assert not made.pids()

        sleep, later = _word(made.repo, "later")
        pushed = made.repo.push({"sleep.yaml": later, "more.yaml": sleep.replace("name: sleep", "name: more")})
        made.see(lambda s: s["git"]["commit"] == pushed and len(s["changes"]) == 11, "the other commit is planned")
        refused = made.asked("apply", str(saved))
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "PLAN_SUPERSEDED" in refused.stderr
        altered, _, new = refused.stderr.partition("; ")
        assert "altered: " in altered
        assert "sleep.0, sleep.1, sleep.2" in altered
        assert "new: more.0, more.1, more.2" in new
        assert not made.pids()

        unasked = made.asked("apply")
        assert unasked.returncode == 1
        assert "--yes" in unasked.stderr
        assert made.asked("plan", "-o", "json", "--out", str(saved)).returncode == 0
        done = made.asked("apply", str(saved))
        assert done.returncode == 0, done.stderr
        assert len(made.settled(pushed)) == 11
        assert made.asked("plan", "--detailed-exitcode").returncode == 0
        assert made.asked("apply", str(made.token_file)).returncode == 1, "not a plan at all"


def _word(repo: Repository, word: str) -> tuple[str, str]:
    """The document of `sleep` as it is, and with another word."""
    text = (repo.work / "sleep.yaml").read_text()
    return text, text.replace("word: one", f"word: {word}")
