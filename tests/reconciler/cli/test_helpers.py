"""Completion that a shell really takes, and a hook that really holds a push back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from reconciler.cli.main import main
from tests.reconciler.source.repos import GOOD, Repo, git, instance


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return Repo(tmp_path / "repo")


ASK = """
source "$1"
COMP_WORDS=(tdie "$2"); COMP_CWORD=1
$(complete -p tdie | sed 's/.*-F \\([^ ]*\\).*/\\1/')
echo "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(("typed", "offered"), [("ro", {"rollback"}), ("dr", {"drain"}), ("re", {"restore", "resume"})])
def test_bash_completes_commands(
    typed: str, offered: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "tdie.bash"
    script.write_text(capsys.readouterr().out)
    done = subprocess.run(["bash", "-c", ASK, "bash", str(script), typed], capture_output=True, text=True, check=False)
    assert set(done.stdout.split()) == offered, done.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "rollback" in capsys.readouterr().out


def test_a_hook_holds_back_what_is_not_valid(
    repo: Repo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    repo.commit(GOOD)
    assert main(["hook", "install", "--folder", str(repo.work)]) == 0
    hook = repo.work / ".git/hooks/pre-push"
    assert capsys.readouterr().out == f"{hook}: what is not valid is not pushed\n"
    good = repo.commit({"one.yaml": instance("one", "wave: 1")})
    (repo.work / "one.yaml").write_text(instance("one", "colour: red"))
    git("commit", "-qam", "bad", cwd=repo.work)
    refused = subprocess.run(
        ["git", "push", "-q", "origin", "HEAD"], cwd=repo.work, capture_output=True, text=True, check=False
    )
    assert refused.returncode != 0
    assert "UNKNOWN_FIELD" in refused.stdout + refused.stderr
    assert git("rev-parse", "HEAD", cwd=repo.origin).strip() == good


def test_a_hook_of_somebody_else_stays(repo: Repo, capsys: pytest.CaptureFixture[str]) -> None:
    hook = repo.work / ".git/hooks/pre-push"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\n")
    assert main(["hook", "install", "--folder", str(repo.work)]) == 1
    assert "HOOK_EXISTS" in capsys.readouterr().err
    assert hook.read_text() == "#!/bin/sh\n"
    assert main(["hook", "install", "--force", "--folder", str(repo.work)]) == 0
    assert main(["hook", "install", "--folder", str(repo.work)]) == 0  # its own it may replace


def test_a_folder_without_git(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hook", "install", "--folder", str(tmp_path)]) == 1
    assert "NO_REPOSITORY" in capsys.readouterr().err
