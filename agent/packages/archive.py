"""What a package archive may contain, and unpacking one: everything is checked before the first byte is written.

An archive comes from outside. Its names are refused unless they are plain relative paths that mean the same on every file
system, and its sizes are not believed: limits hold for the bytes that really come out.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from agent.errors import Invalid
from agent.packages.digest import ContentRow

_CHUNK = 1 << 18
_ENTRY = 320  # bytes of an entry in the directory, many more than usual
_LONGEST_END = 20 + 22 + 65535  # locator of the 64-bit record, end record, its comment
_LOCAL_HEADER = 30  # bytes before the name of each entry
_RATIO_FROM = 1 << 20  # small files may compress as well as they like
_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f\\]")
_DRIVE = re.compile(r"^[A-Za-z]:")


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds of one archive; bytes and counts."""

    archive: int = 512 << 20
    inflated: int = 2 << 30
    entries: int = 20_000
    ratio: int = 200
    path: int = 240
    depth: int = 32


DEFAULT_LIMITS = Limits()


class UnsafePackage(Invalid):
    """The archive is refused as a whole; nothing of it was written."""

    code = "PKG_UNSAFE_PATH"


def unpack(archive: Path, into: Path, limits: Limits = DEFAULT_LIMITS) -> tuple[ContentRow, ...]:
    """All files of the archive are below `into` (which exists and is empty), synced to disk; sorted by path.

    Raises UnsafePackage with PKG_UNSAFE_PATH, PKG_AMBIGUOUS_ENTRY, PKG_TOO_LARGE or PKG_CORRUPT. The caller removes `into` then.
    """
    try:
        _check_directory(archive, limits)
        with zipfile.ZipFile(archive) as opened:
            entries = checked(opened, limits)
            room = _Room(limits, archive.stat().st_size)
            return tuple(_extract(opened, entry, into, room) for entry in entries)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeError) as error:
        raise UnsafePackage(f"cannot be read as a zip archive: {error}", code="PKG_CORRUPT") from error


def _check_directory(archive: Path, limits: Limits) -> None:
    """Refuse a directory that is too long to be read at all: an object is made of each entry before anybody counts them.

    The end record says how long it is (APPNOTE 4.3.16); archives that need the 64-bit one are beyond our limits anyway.
    """
    with archive.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _LONGEST_END))
        tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + 16:
        return  # no zip archive, as is said where it is opened
    (length,) = struct.unpack_from("<L", tail, at + 12)
    if length > limits.entries * _ENTRY or tail[max(0, at - 20) : at].startswith(b"PK\x06\x07"):
        raise UnsafePackage(f"more than {limits.entries} entries", code="PKG_TOO_LARGE")


def checked(opened: zipfile.ZipFile, limits: Limits = DEFAULT_LIMITS) -> tuple[zipfile.ZipInfo, ...]:
    """The files of an archive whose every entry is acceptable, sorted by path; folders are implied by them."""
    entries = opened.infolist()
    if len(entries) > limits.entries:
        raise UnsafePackage(f"{len(entries)} entries, at most {limits.entries} are allowed", code="PKG_TOO_LARGE")
    declared = sum(entry.file_size for entry in entries)
    if declared > limits.inflated:
        raise UnsafePackage(f"{declared} bytes, at most {limits.inflated} are allowed", code="PKG_TOO_LARGE")
    for entry in entries:
        _check_name(entry, limits)
        _check_kind(entry)
    _check_ambiguous(entries)
    _check_overlap(entries)
    return tuple(sorted((e for e in entries if not e.is_dir()), key=lambda e: e.filename))


def _check_name(entry: zipfile.ZipInfo, limits: Limits) -> None:
    name = entry.orig_filename  # `filename` is already cut at a NUL
    parts = name.removesuffix("/").split("/")
    unsafe = (
        not name
        or name.startswith("/")
        or _FORBIDDEN.search(name)
        or _DRIVE.match(name)
        or any(part in ("", ".", "..") for part in parts)
    )
    if unsafe:
        raise UnsafePackage(f"entry={_shown(name)}")
    try:
        length = len(name.encode())
    except UnicodeEncodeError as error:
        raise UnsafePackage(f"entry={_shown(name)} is not a valid name") from error
    if length > limits.path or len(parts) > limits.depth:
        raise UnsafePackage(f"entry={_shown(name)}: the path is too long", code="PKG_TOO_LARGE")


def _check_kind(entry: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or (kind == stat.S_IFDIR) > entry.is_dir():
        raise UnsafePackage(f"entry={_shown(entry.filename)} is neither a file nor a folder")
    if entry.flag_bits & 0x1:
        raise UnsafePackage(f"entry={_shown(entry.filename)} is encrypted", code="PKG_CORRUPT")


def _check_ambiguous(entries: list[zipfile.ZipInfo]) -> None:
    """Refuse names that some file system would take for the same, and a file that is also a folder."""
    spelled: dict[str, str] = {}
    files: set[str] = set()
    for entry in entries:
        name = entry.filename.removesuffix("/")
        key = _folded(name)
        if key in files or (key in spelled and not entry.is_dir()):
            raise UnsafePackage(f"entry={_shown(entry.filename)} occurs twice", code="PKG_AMBIGUOUS_ENTRY")
        if not entry.is_dir():
            files.add(key)
        for path in _with_parents(name):
            if spelled.setdefault(_folded(path), path) != path:
                raise UnsafePackage(
                    f"entry={_shown(path)} collides with {_shown(spelled[_folded(path)])}", code="PKG_AMBIGUOUS_ENTRY"
                )
        if any(_folded(path) in files for path in _with_parents(name) if path != name):
            raise UnsafePackage(f"entry={_shown(name)} is below a file", code="PKG_AMBIGUOUS_ENTRY")


def _check_overlap(entries: list[zipfile.ZipInfo]) -> None:
    """Refuse entries that share compressed bytes: many large files out of one small blob."""
    end = 0
    for entry in sorted(entries, key=lambda e: e.header_offset):
        if entry.header_offset < end:
            raise UnsafePackage(f"entry={_shown(entry.filename)} overlaps another", code="PKG_TOO_LARGE")
        end = entry.header_offset + _LOCAL_HEADER + entry.compress_size


class _Room:
    """Counts what really comes out of an archive."""

    def __init__(self, limits: Limits, archive: int) -> None:
        self._left = min(limits.inflated, max(_RATIO_FROM, archive * limits.ratio))

    def take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise UnsafePackage("inflates to more than is allowed", code="PKG_TOO_LARGE")


def _extract(opened: zipfile.ZipFile, entry: zipfile.ZipInfo, into: Path, room: _Room) -> ContentRow:
    target = into / entry.filename
    target.parent.mkdir(parents=True, exist_ok=True)
    executable = bool((entry.external_attr >> 16) & 0o100)
    digest, size = hashlib.sha256(), 0
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as out, opened.open(entry) as source:
        while chunk := source.read(_CHUNK):
            room.take(len(chunk))
            size += len(chunk)
            digest.update(chunk)
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    if size != entry.file_size:
        raise UnsafePackage(f"entry={_shown(entry.filename)} has another size than declared", code="PKG_CORRUPT")
    target.chmod(0o555 if executable else 0o444)
    return ContentRow(entry.filename, executable, size, digest.hexdigest())


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split("/")
    for count in range(1, len(parts) + 1):
        yield "/".join(parts[:count])


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _shown(name: str) -> str:
    return ascii(name if len(name) <= 80 else name[:77] + "...")
