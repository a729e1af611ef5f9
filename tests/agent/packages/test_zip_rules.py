"""FAULTS 47–50: an archive with one bad entry is refused as a whole, before anything is written."""

from __future__ import annotations

import contextlib
import io
import stat
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.packages.archive import Limits, UnsafePackage, unpack
from tests.conftest import ROOT


def zipped(*entries: tuple[str, bytes], mode: int = 0o100644, compress: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compress) as archive:
        for name, data in entries:
            info = zipfile.ZipInfo("x")
            info.filename = name
            info.compress_type = compress
            info.create_system = 3
            info.external_attr = mode << 16
            archive.writestr(info, data)
    return buffer.getvalue()


def patched(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new)


def lying_size() -> bytes:
    data = zipped(("big", b"\0" * 300_000), compress=zipfile.ZIP_DEFLATED)
    return patched(data, struct.pack("<L", 300_000), struct.pack("<L", 10))


def overlapping() -> bytes:
    data = bytearray(zipped(("a", b"1" * 100), ("b", b"1" * 100)))
    end = data.rindex(b"PK\x05\x06")
    second = data.rindex(b"PK\x01\x02", 0, end)
    data[second + 42 : second + 46] = struct.pack("<L", 0)
    return bytes(data)


def encrypted() -> bytes:
    data = bytearray(zipped(("a", b"1")))
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


CORPUS: list[tuple[str, Callable[[], bytes], str]] = [
    ("parent", lambda: zipped(("ok", b""), ("../evil", b"x")), "PKG_UNSAFE_PATH"),
    ("parent inside", lambda: zipped(("a/../../evil", b"x")), "PKG_UNSAFE_PATH"),
    ("dot", lambda: zipped(("./a", b"x")), "PKG_UNSAFE_PATH"),
    ("empty part", lambda: zipped(("a//b", b"x")), "PKG_UNSAFE_PATH"),
    ("absolute", lambda: zipped(("/etc/evil", b"x")), "PKG_UNSAFE_PATH"),
    ("drive", lambda: zipped(("C:evil", b"x")), "PKG_UNSAFE_PATH"),
    ("backslash", lambda: zipped(("a\\..\\evil", b"x")), "PKG_UNSAFE_PATH"),
    ("nul", lambda: patched(zipped(("aXb", b"x")), b"aXb", b"a\0b"), "PKG_UNSAFE_PATH"),
    ("control", lambda: zipped(("a\nb", b"x")), "PKG_UNSAFE_PATH"),
    ("symlink", lambda: zipped(("a", b"/etc"), mode=stat.S_IFLNK | 0o777), "PKG_UNSAFE_PATH"),
    ("device", lambda: zipped(("a", b""), mode=stat.S_IFCHR | 0o600), "PKG_UNSAFE_PATH"),
    ("fifo", lambda: zipped(("a", b""), mode=stat.S_IFIFO | 0o600), "PKG_UNSAFE_PATH"),
    ("case", lambda: zipped(("Readme", b""), ("README", b"")), "PKG_AMBIGUOUS_ENTRY"),
    ("case of a folder", lambda: zipped(("lib/a", b""), ("Lib/b", b"")), "PKG_AMBIGUOUS_ENTRY"),
    ("nfc", lambda: zipped(("caf\u00e9", b""), ("cafe\u0301", b"")), "PKG_AMBIGUOUS_ENTRY"),
    ("file and folder", lambda: zipped(("a", b""), ("a/b", b"")), "PKG_AMBIGUOUS_ENTRY"),
    ("folder and file", lambda: zipped(("a/b", b""), ("a", b"")), "PKG_AMBIGUOUS_ENTRY"),
    ("entries", lambda: zipped(*[(f"f{i}", b"") for i in range(51)]), "PKG_TOO_LARGE"),
    ("declared size", lambda: zipped(("a", b"x" * 5_000_000)), "PKG_TOO_LARGE"),
    ("ratio", lambda: zipped(("a", b"\0" * 3_000_000), compress=zipfile.ZIP_DEFLATED), "PKG_TOO_LARGE"),
    ("long path", lambda: zipped(("d/" * 5 + "n" * 300, b"")), "PKG_TOO_LARGE"),
    ("deep path", lambda: zipped(("d/" * 40 + "n", b"")), "PKG_TOO_LARGE"),
    ("overlap", overlapping, "PKG_TOO_LARGE"),
    ("lying size", lying_size, "PKG_CORRUPT"),
    ("encrypted", encrypted, "PKG_CORRUPT"),
    ("bad crc", lambda: patched(zipped(("a", b"hello")), b"hello", b"hellO"), "PKG_CORRUPT"),
    ("truncated", lambda: zipped(("a", b"hello"))[:-5], "PKG_CORRUPT"),
    ("not a zip", lambda: b"hello", "PKG_CORRUPT"),
    ("empty file", lambda: b"", "PKG_CORRUPT"),
]
DURING = {"ratio", "lying size", "bad crc", "encrypted"}  # only seen while the bytes come out


@pytest.mark.parametrize(("name", "make", "code"), CORPUS, ids=[c[0] for c in CORPUS])
def test_bad_archives_are_refused(name: str, make: Callable[[], bytes], code: str, tmp_path: Path) -> None:
    file, into = tmp_path / "a.zip", tmp_path / "into"
    file.write_bytes(make())
    into.mkdir()
    with pytest.raises(UnsafePackage) as caught:
        unpack(file, into, Limits(entries=50, inflated=4_000_000))
    assert caught.value.code == code
    if name not in DURING:
        assert not list(into.iterdir())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "into"]


def many_entries(count: int) -> bytes:
    """An archive whose directory names one small file so many times."""
    data = zipped(("n" * 8, b""))
    start, end = data.index(b"PK\x01\x02"), data.rindex(b"PK\x05\x06")
    directory = data[start:end] * count
    tail = bytearray(data[end:])
    struct.pack_into("<HHLL", tail, 8, count & 0xFFFF, count & 0xFFFF, len(directory), start)
    return data[:start] + directory + bytes(tail)


UNPACKS = """
import pathlib, resource, sys
from agent.packages.archive import UnsafePackage, unpack
limit = 256 << 20
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
into = pathlib.Path(sys.argv[2])
into.mkdir()
try:
    unpack(pathlib.Path(sys.argv[1]), into)
except UnsafePackage as error:
    print(error.code, list(into.iterdir()))
"""


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda: many_entries(1_000_000), "PKG_TOO_LARGE"),
        (lambda: zipped(("a", b"\0" * (300 << 20)), compress=zipfile.ZIP_DEFLATED), "PKG_TOO_LARGE"),
        (lambda: zip64_end(zipped(("a", b"x"))), "PKG_TOO_LARGE"),
    ],
    ids=["a million entries", "300 MiB of nothing", "another end record"],
)
def test_bombs_cost_little_memory(make: Callable[[], bytes], code: str, tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(make())
    command = [sys.executable, "-c", UNPACKS, str(tmp_path / "a.zip"), str(tmp_path / "into")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.startswith(code), done.stderr[-500:]


def zip64_end(data: bytes) -> bytes:
    """The same with a 64-bit end record, which readers believe instead."""
    end = data.rindex(b"PK\x05\x06")
    record = struct.pack("<4sQHHLLQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 1 << 40, 1 << 40, 1 << 40, 0)
    return data[:end] + record + struct.pack("<4sLQL", b"PK\x06\x07", 0, end, 1) + data[end:]


def test_duplicate_entry(tmp_path: Path) -> None:
    file, into = tmp_path / "a.zip", tmp_path / "into"
    file.write_bytes(patched(zipped(("aa", b""), ("bb", b"")), b"bb", b"aa"))
    into.mkdir()
    with pytest.raises(UnsafePackage, match="PKG_AMBIGUOUS_ENTRY"):
        unpack(file, into)


def test_good_archive_with_folders_and_executables(tmp_path: Path) -> None:
    file, into = tmp_path / "a.zip", tmp_path / "into"
    file.write_bytes(zipped(("d/", b""), ("d/run.sh", b"#!"), mode=0o100755))
    into.mkdir()
    rows = unpack(file, into)
    assert [(r.path, r.executable, r.size) for r in rows] == [("d/run.sh", True, 2)]
    assert stat.S_IMODE((into / "d/run.sh").stat().st_mode) == 0o555


BASE = zipped(("manifest.json", b"{}"), ("d/code.py", b"print()" * 20), compress=zipfile.ZIP_DEFLATED)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(BASE) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_any_damage_is_a_typed_refusal_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, int]]
) -> None:
    root = tmp_path_factory.mktemp("zip")
    data = bytearray(BASE)
    for at, value in damage:
        data[at] = value
    (root / "a.zip").write_bytes(bytes(data))
    (root / "into").mkdir()
    with contextlib.suppress(UnsafePackage):
        unpack(root / "a.zip", root / "into")
    assert {p.name for p in root.iterdir()} == {"a.zip", "into"}
