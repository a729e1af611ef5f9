"""The identity of a package: a digest of its content list, never of its container, because compression differs between builds."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, TypeAlias

from agent.errors import Invalid
from agent.wire import digest_of

Content: TypeAlias = Mapping[str, tuple[bytes, bool]]
"""Relative POSIX path → (bytes, executable): everything of a package that counts."""


class ContentRow(NamedTuple):
    """One file of a content list; `sha256` is hex, `size` in bytes."""

    path: str
    executable: bool
    size: int
    sha256: str


def content_rows(content: Content) -> list[ContentRow]:
    """The content list of files in memory, in path order."""
    return [
        ContentRow(path, executable, len(data), hashlib.sha256(data).hexdigest())
        for path, (data, executable) in sorted(content.items())
    ]


def rows_digest(rows: Iterable[ContentRow]) -> str:
    """Hex sha256 of a content list, in any order: for readers that hash files as they stream by."""
    return digest_of({"content": 1, "files": [list(row) for row in sorted(rows)]})


def content_digest(content: Content) -> str:
    """Hex sha256 of files in memory; equal for equal content, however it was or will be packed."""
    return rows_digest(content_rows(content))


def folder_digest(root: Path) -> str:
    """Hex sha256 of a folder, every file counted and streamed; Invalid (PKG_UNSAFE_PATH) for links and special files."""
    rows = []
    for path, file, mode in _walk(root):
        digest = hashlib.sha256()
        size = 0
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
                size += len(chunk)
        rows.append(ContentRow(path, bool(mode & stat.S_IXUSR), size, digest.hexdigest()))
    return rows_digest(rows)


def read_folder(root: Path) -> dict[str, tuple[bytes, bool]]:
    """The files of a source folder; byte-code caches are left out because they are not source."""
    return {
        path: (file.read_bytes(), bool(mode & stat.S_IXUSR)) for path, file, mode in _walk(root) if not is_cache(path)
    }


def is_cache(path: str) -> bool:
    """True for Python byte code, which never belongs to a package's source."""
    return path.endswith((".pyc", ".pyo")) or "__pycache__" in path.split("/")


def _walk(root: Path) -> Iterator[tuple[str, Path, int]]:
    """Every regular file below `root` as (relative path, file, mode); anything else is refused, never followed."""
    pending = [root]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                path = Path(entry.path).relative_to(root).as_posix()
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
                    continue
                mode = entry.stat(follow_symlinks=False).st_mode
                if not stat.S_ISREG(mode) or not path.isprintable():
                    raise Invalid(f'entry="{path!a}" is not a regular file', code="PKG_UNSAFE_PATH")
                yield path, Path(entry.path), mode
