"""`tdie package`: what it builds is what agents take, and what it refuses they would refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.packages.digest import content_digest, read_folder
from reconciler.cli.main import main
from tests.wheels import wheel

MANIFEST = {
    "name": "part", "version": "1.2.0", "componentType": "part:Part", "contentRoot": "content",
    "dependencies": ["tdielib==1.0"], "defaultConfiguration": {"a": 1},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "part"
    (made / "content" / "dependencies").mkdir(parents=True)
    (made / "manifest.json").write_text(json.dumps(MANIFEST))
    (made / "content" / "part.py").write_text("")
    name, data = wheel("tdielib", "1.0", {"tdielib.py": ""})
    (made / "content" / "dependencies" / name).write_bytes(data)
    return made


def test_build_inspect_verify(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digest = content_digest(read_folder(folder))
    out = tmp_path / "a.zip"
    assert main(["package", "build", str(folder), "-O", str(out)]) == 0
    assert f"digest {digest}" in capsys.readouterr().out
    (folder / "content" / "__pycache__").mkdir()
    (folder / "content" / "__pycache__" / "part.pyc").write_bytes(b"x")
    assert main(["package", "build", str(folder), "-O", str(tmp_path / "b.zip")]) == 0
    assert (tmp_path / "b.zip").read_bytes() == out.read_bytes()
    for path in (folder, out):
        capsys.readouterr()
        assert main(["package", "inspect", str(path), "-o", "json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["digest"], found["manifest"]["dependencies"]) == (digest, ["tdielib==1.0"])
        assert [f["path"] for f in found["files"]] == [
            "content/dependencies/tdielib-1.0-py3-none-any.whl", "content/part.py", "manifest.json",
        ]  # fmt: skip
        assert main(["package", "verify", str(path), "--digest", digest]) == 0
    assert main(["package", "inspect", str(out)]) == 0
    assert "part@1.2.0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"dependencies": ["x @ file:///etc/passwd"]}, "PKG_DEPENDENCY"),
        ({"componentType": "agent:Part"}, "PKG_RESERVED"),
        ({"contentRoot": "elsewhere"}, "PKG_LAYOUT"),
        ({"version": "one"}, "PKG_MANIFEST"),
        ({"settingsSchema": {"type": 7}}, "PKG_SCHEMA"),
    ],
)
def test_broken_rules_are_named(
    folder: Path, capsys: pytest.CaptureFixture[str], change: dict[str, object], code: str
) -> None:
    (folder / "manifest.json").write_text(json.dumps(MANIFEST | change))
    assert main(["package", "verify", str(folder)]) == 1
    assert code in capsys.readouterr().err


def test_another_digest_and_no_package_at_all(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["package", "verify", str(folder), "--digest", "0" * 64]) == 1
    assert "PKG_DIGEST_MISMATCH" in capsys.readouterr().err
    assert main(["package", "verify", str(folder / "nothing")]) == 1
    (folder / "x.zip").write_bytes(b"no zip")
    assert main(["package", "verify", str(folder / "x.zip")]) == 1
    assert "PKG_CORRUPT" in capsys.readouterr().err
