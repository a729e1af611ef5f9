"""`tdie init cluster` and `tdie init token`: who may call, on each machine."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from agent.callers import Callers, Role, Unauthorized, people_file
from reconciler.cli.main import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "made"
    nodes = [word for name in ("n1", "n2") for word in ("--node", f"{name}=10.0.0.{name[1]}")]
    assert main(["init", "cluster", "prod", "--repository", "/srv/git", *nodes, "--folder", str(made)]) == 0
    return made


def shown(folder: Path, name: str) -> str:
    return f"Bearer {(folder / f'{name}.token').read_text().strip()}"


def test_each_machine_knows_the_people_by_hash_only(folder: Path) -> None:
    tokens = {name: (folder / f"{name}.token").read_text().strip() for name in ("viewer", "operator", "admin")}
    for home in (folder / "n1", folder / "n2"):
        settings = yaml.safe_load((home / "agent.yaml").read_text())
        assert settings["people_file"] == str(home / "people")
        assert sorted(path.name for path in home.glob("*.token")) == ["cluster.token"]
        assert (home / "people").stat().st_mode & 0o077 == 0
        assert not any(token in (home / "people").read_text() for token in tokens.values())
        callers = Callers(str, people_file(home / "people"))
        assert [callers.find(shown(folder, name)).role for name in tokens] == [Role.VIEWER, Role.OPERATOR, Role.ADMIN]
    assert yaml.safe_load((folder / "n1/controller.yaml").read_text())["people_file"] == str(folder / "n1/people")


def test_a_token_is_made_replaced_and_taken_back(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    callers = Callers(str, people_file(folder / "n2/people"))
    assert main(["init", "token", "ann", "--role", "operator", "--days", "7", "--folder", str(folder)]) == 0
    first = shown(folder, "ann")
    assert first.split()[1] not in capsys.readouterr().out
    found = callers.find(first)
    assert (found.name, found.role) == ("ann", Role.OPERATOR)
    later = Callers(str, people_file(folder / "n2/people"), lambda: datetime.now(UTC) + timedelta(days=8))
    with pytest.raises(Unauthorized, match="ran out"):
        later.find(first)
    assert main(["init", "token", "ann", "--role", "viewer", "--folder", str(folder)]) == 0
    with pytest.raises(Unauthorized):
        callers.find(first)
    assert callers.find(shown(folder, "ann")).role is Role.VIEWER
    second = shown(folder, "ann")
    assert main(["init", "token", "ann", "--revoke", "--folder", str(folder)]) == 0
    with pytest.raises(Unauthorized):
        callers.find(second)
    assert not (folder / "ann.token").exists()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("../x", "--role", "viewer"), "NAME"),
        (("ann", "--role", "viewer", "--days", "91"), "DAYS"),
        (("ann", "--role", "viewer", "--days", "0"), "DAYS"),
        (("nobody", "--revoke"), "NAME"),
    ],
)
def test_nonsense_is_refused_and_changes_nothing(
    words: tuple[str, ...], code: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "people").read_text()
    assert main(["init", "token", *words, "--folder", str(folder)]) == 1
    assert code in capsys.readouterr().err
    assert (folder / "people").read_text() == before


def test_the_folder_must_be_one_of_init_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "token", "ann", "--role", "viewer", "--folder", str(tmp_path)]) == 1
    assert "TOKEN_FILE" in capsys.readouterr().err
