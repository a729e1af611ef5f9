"""`tdie init component`: what it writes runs, passes its own test, and is valid."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from reconciler.cli.main import main
from reconciler.source.validate import load_worktree
from tests.conftest import ROOT

CLUSTER = "apiVersion: tdie/v1\nkind: Cluster\nmetadata: {name: demo}\nspec: {nodes: [{name: a}]}\n"
PUBLISHER = """\
apiVersion: tdie/v1
kind: Package
metadata: {name: basic-publisher}
spec: {version: 1.0.0, source: {builtin: basic-publisher}}
"""


@pytest.mark.parametrize("has_publisher", [False, True])
def test_a_new_component_passes_its_test_and_validates(has_publisher: bool, tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(CLUSTER + (f"---\n{PUBLISHER}" if has_publisher else ""))
    assert main(["init", "component", "order-import", "--folder", str(tmp_path)]) == 0

    tried = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_order_import_component.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert tried.returncode == 0, tried.stdout + tried.stderr
    assert "1 passed" in tried.stdout

    checked = asyncio.run(load_worktree(tmp_path))
    assert checked.problems == ()
    assert checked.desired is not None
    spec = checked.desired.instances["order-import"].spec
    assert (spec.package.name, spec.settings["every"]) == ("order-import", "10s")


def test_the_samples_publisher_is_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "packages.yaml").write_text((ROOT / "sample-repo/packages.yaml").read_text())
    assert main(["init", "component", "greet", "--folder", str(tmp_path)]) == 0
    assert "kind: Package" in (made := (tmp_path / "instances/greet.yaml").read_text())
    assert made.count("name: basic-publisher") == 0
    assert "tdie validate && tdie plan" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["Upper", "1st", "a_b", "tdie-x", "consul", "a-", "x" * 64])
def test_a_wrong_name_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "component", name, "--folder", str(tmp_path)]) == 1
    assert "NAME" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "instances").mkdir()
    (tmp_path / "instances/mine.yaml").write_text("mine")
    assert main(["init", "component", "mine", "--folder", str(tmp_path)]) == 1
    assert "EXISTS instances/mine.yaml exists already" in capsys.readouterr().err
    assert (tmp_path / "instances/mine.yaml").read_text() == "mine"
    assert not (tmp_path / "packages").exists()
