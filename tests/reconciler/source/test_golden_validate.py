"""The golden corpus: every broken file says exactly what is wrong with it, at the right place."""

from __future__ import annotations

import asyncio
import re
import tempfile
from pathlib import Path

import pytest

from reconciler.model.problems import as_text
from reconciler.source.validate import load_worktree
from tests.reconciler.source.repos import GOOD

CASES = Path(__file__).parents[2] / "golden" / "validate" / "cases.txt"


def parse(text: str) -> dict[str, tuple[dict[str, str | None], str]]:
    """Case name → (files laid over the good ones, what is said)."""
    cases: dict[str, tuple[dict[str, str | None], str]] = {}
    for block in text.split("=== ")[1:]:
        name, _, rest = block.partition("\n")
        parts = re.split(r"^--- (.+)\n", rest, flags=re.MULTILINE)[1:]
        files: dict[str, str | None] = {}
        said = ""
        for title, body in zip(parts[::2], parts[1::2], strict=True):
            if title == "says":
                said = body.strip("\n") + "\n"
            elif title.endswith(" gone"):
                files[title.removesuffix(" gone")] = None
            else:
                files[title] = body
        cases[name.strip()] = files, said
    return cases


def in_bytes(text: str) -> bytes:
    """The text with its stand-ins for special bytes replaced."""
    data = text.encode().replace(b"\\t", b"\t").replace(b"\\r", b"\r")
    return re.sub(rb"\\x([0-9a-f]{2})", lambda m: bytes([int(m[1], 16)]), data)


def said_of(files: dict[str, str | None], folder: Path) -> str:
    for name, text in {**GOOD, **files}.items():
        if text is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(in_bytes(text))
    return as_text(asyncio.run(load_worktree(folder)).problems)


@pytest.mark.parametrize("name", sorted(parse(CASES.read_text())) if CASES.exists() else [])
def test_broken_files_say_what_is_wrong(name: str, tmp_path: Path) -> None:
    files, said = parse(CASES.read_text())[name]
    assert said_of(files, tmp_path) == said
    assert said, "a broken file must say something"


def rewrite() -> None:
    text = ""
    for name, (files, _) in parse(CASES.read_text()).items():
        text += f"=== {name}\n"
        for file, body in files.items():
            text += f"--- {file} gone\n" if body is None else f"--- {file}\n{body}"
        with tempfile.TemporaryDirectory() as folder:
            text += f"--- says\n{said_of(files, Path(folder))}"
    CASES.write_text(text)


if __name__ == "__main__":
    rewrite()
