"""Equal content has one digest and one packing; anything else differs."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import Invalid
from agent.packages.digest import content_digest, folder_digest, read_folder
from agent.packages.pack import pack, write_pack

CONTENT = {"manifest.json": (b"{}", False), "bin/run": (b"#!/bin/sh\n", True), "ä.txt": (b"x" * 10, False)}


def lay_out(content: dict[str, tuple[bytes, bool]], root: Path) -> Path:
    for path, (data, executable) in content.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        file.chmod(0o755 if executable else 0o644)
    return root


def test_memory_folder_and_zip_agree(tmp_path: Path) -> None:
    root = lay_out(CONTENT, tmp_path / "a")
    assert folder_digest(root) == content_digest(CONTENT) == content_digest(read_folder(root))
    with zipfile.ZipFile(io.BytesIO(pack(CONTENT))) as archive:
        unpacked = {e.filename: (archive.read(e), bool(e.external_attr >> 16 & 0o100)) for e in archive.infolist()}
    assert unpacked == CONTENT


def test_the_digest_is_stable_over_releases() -> None:
    assert content_digest({"a": (b"1", True)}) == "7efcc4e0cc8c68c19b36eb21339de833a582fcf7f9802d9ba9a1735083cbd620"


def test_packing_is_deterministic_and_stored(tmp_path: Path) -> None:
    assert pack(CONTENT) == pack(dict(reversed(CONTENT.items())))
    target = write_pack(CONTENT, tmp_path / "p.zip")
    assert target.read_bytes() == pack(CONTENT)
    assert [f.name for f in tmp_path.iterdir()] == ["p.zip"]


@pytest.mark.parametrize(
    "other",
    [
        CONTENT | {"bin/run": (b"#!/bin/sh\n", False)},
        CONTENT | {"bin/run": (b"#!/bin/sh", True)},
        CONTENT | {"bin/ran": (b"", False)},
    ],
)
def test_any_difference_shows(other: dict[str, tuple[bytes, bool]]) -> None:
    assert content_digest(other) != content_digest(CONTENT)


def test_links_are_refused_and_caches_left_out_of_sources(tmp_path: Path) -> None:
    root = lay_out({"a.py": (b"", False), "__pycache__/a.pyc": (b"", False)}, tmp_path)
    assert set(read_folder(root)) == {"a.py"}
    (root / "link").symlink_to("/etc/passwd")
    with pytest.raises(Invalid, match="link"):
        folder_digest(root)


@given(st.dictionaries(st.text("abc/é", min_size=1, max_size=5), st.tuples(st.binary(max_size=9), st.booleans())))
def test_order_never_matters(content: dict[str, tuple[bytes, bool]]) -> None:
    assert content_digest(content) == content_digest(dict(reversed(content.items())))
