"""Trees of files: what differs between two of them, at the cost of what differs (LIMITS §2.3, rule 2)."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import pygit2
from pygit2.enums import FileMode

from agent.errors import Refused, Waiting
from agent.packages.digest import is_cache

MAX_DEPTH = 32
MAX_FILES = 500_000
MAX_BLOB = 64 << 20
MAX_PACKAGE = 512 << 20

PLAIN, PROGRAM, LINK, SUBMODULE, OTHER = "file", "program", "symbolic link", "submodule", "special file"
_KINDS = {
    FileMode.BLOB: PLAIN,
    0o100664: PLAIN,  # written by old tools; means the same
    FileMode.BLOB_EXECUTABLE: PROGRAM,
    FileMode.LINK: LINK,
    FileMode.COMMIT: SUBMODULE,
}
_TREE = int(FileMode.TREE)


class TooLarge(Refused):
    """A tree is larger than this program is willing to read."""

    code = "GIT_TOO_LARGE"


class Corrupt(Waiting):
    """An object of the repository cannot be read; fetching it again may help."""

    code = "GIT_CORRUPT"


class Entry(NamedTuple):
    """A file in a tree; equal ids mean equal bytes."""

    id: str
    kind: str


class Change(NamedTuple):
    """A path whose entry differs between two trees; None is absent."""

    path: str
    before: Entry | None
    after: Entry | None


class Tree(Protocol):
    """The files of a commit, or of a folder on disk."""

    id: str

    def changes(self, before: Tree | None) -> Iterator[Change]:
        """What differs from an older tree of the same kind, or everything."""
        ...

    def read(self, path: str, id: str) -> bytes:
        """The bytes of a file of this tree."""
        ...

    def folder(self, path: str) -> str | None:
        """The identity of a folder's whole content, or None when there is no such folder."""
        ...

    def content(self, path: str) -> Mapping[str, tuple[Entry, bytes]]:
        """The files below a folder, by path relative to it, without byte-code caches."""
        ...


class GitTree:
    """The tree of a commit. Blobs are read from the object store; nothing is ever checked out."""

    def __init__(self, repository: pygit2.Repository, id: str) -> None:
        self._repository = repository
        self.id = id

    def changes(self, before: Tree | None) -> Iterator[Change]:
        old = before.id if before is not None else None
        return walk(self._repository, old, self.id)

    def read(self, path: str, id: str) -> bytes:
        try:
            _, size = self._repository.odb.read_header(id)
        except (pygit2.GitError, KeyError, ValueError) as error:
            raise Corrupt(f"oid={id} of {path}: {error}") from error
        if size > MAX_BLOB:
            raise TooLarge(f"{path} has {size} bytes, at most {MAX_BLOB} are read")
        blob = _object(self._repository, id)
        return blob.data if isinstance(blob, pygit2.Blob) else b""

    def folder(self, path: str) -> str | None:
        id = self.id
        for part in path.split("/"):
            entry = _entries(self._repository, id).get(part)
            if entry is None or entry[1] != _TREE:
                return None
            id = entry[0]
        return id

    def content(self, path: str) -> Mapping[str, tuple[Entry, bytes]]:
        found: dict[str, tuple[Entry, bytes]] = {}
        total = 0
        for change in walk(self._repository, None, self.folder(path)):
            entry = change.after
            if entry is None or is_cache(change.path):
                continue
            data = self.read(f"{path}/{change.path}", entry.id) if entry.kind in (PLAIN, PROGRAM) else b""
            total += len(data)
            if total > MAX_PACKAGE:
                raise TooLarge(f"{path} has more than {MAX_PACKAGE} bytes")
            found[change.path] = entry, data
        return found


def _object(repository: pygit2.Repository, id: str) -> pygit2.Object:
    try:
        return repository[id]
    except (pygit2.GitError, KeyError, ValueError) as error:
        raise Corrupt(f"oid={id}: {error}") from error


def walk(repository: pygit2.Repository, before: str | None, after: str | None) -> Iterator[Change]:
    """Every blob, link and submodule that differs between two trees; equal subtrees are never opened."""
    count = 0
    pending: list[tuple[str, str | None, str | None, int]] = [("", before, after, 0)]
    while pending:
        prefix, old_id, new_id, depth = pending.pop()
        if old_id == new_id:
            continue
        if depth > MAX_DEPTH:
            raise TooLarge(f"{prefix} is nested more than {MAX_DEPTH} folders deep")
        old, new = _entries(repository, old_id), _entries(repository, new_id)
        for name in old.keys() | new.keys():
            was, now = old.get(name), new.get(name)
            if was == now:
                continue
            path = prefix + name
            was_tree = was[0] if was is not None and was[1] == _TREE else None
            now_tree = now[0] if now is not None and now[1] == _TREE else None
            if was_tree or now_tree:
                pending.append((path + "/", was_tree, now_tree, depth + 1))
            was_file = _entry(was) if was_tree is None else None
            now_file = _entry(now) if now_tree is None else None
            if was_file or now_file:
                count += 1
                if count > MAX_FILES:
                    raise TooLarge(f"more than {MAX_FILES} files")
                yield Change(path, was_file, now_file)


def _entries(repository: pygit2.Repository, id: str | None) -> dict[str, tuple[str, int]]:
    if id is None:
        return {}
    tree = _object(repository, id)
    if not isinstance(tree, pygit2.Tree):
        raise Corrupt(f"oid={id} is not a tree")
    return {_name(entry): (str(entry.id), int(entry.filemode)) for entry in tree}


def _name(entry: pygit2.Object) -> str:
    return (entry.raw_name or b"").decode("utf-8", "backslashreplace")


def _entry(found: tuple[str, int] | None) -> Entry | None:
    return Entry(found[0], _KINDS.get(found[1], OTHER)) if found is not None else None


class FolderTree:
    """Files on disk that are not committed yet. Links are reported, never followed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files = dict(self._scan())
        self.id = _sum(self._files)

    def _scan(self) -> Iterator[tuple[str, Entry]]:
        pending = [(self._root, 0)]
        count = 0
        while pending:
            folder, depth = pending.pop()
            if depth > MAX_DEPTH:
                raise TooLarge(f"{folder.name} is nested more than {MAX_DEPTH} folders deep")
            with os.scandir(folder) as entries:
                for entry in entries:
                    path = Path(entry.path).relative_to(self._root).as_posix()
                    if entry.is_dir(follow_symlinks=False):
                        if entry.name not in (".git", "__pycache__"):
                            pending.append((Path(entry.path), depth + 1))
                        continue
                    count += 1
                    if count > MAX_FILES:
                        raise TooLarge(f"more than {MAX_FILES} files")
                    yield path, self._describe(entry)

    def _describe(self, entry: os.DirEntry[str]) -> Entry:
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            return Entry("link", LINK)
        if not stat.S_ISREG(status.st_mode):
            return Entry("special", OTHER)
        if status.st_size > MAX_BLOB:
            return Entry(f"large {status.st_size} {status.st_mtime_ns}", PLAIN)
        digest = hashlib.sha256(Path(entry.path).read_bytes()).hexdigest()
        return Entry(digest, PROGRAM if status.st_mode & stat.S_IXUSR else PLAIN)

    def changes(self, before: Tree | None) -> Iterator[Change]:
        old = before._files if isinstance(before, FolderTree) else {}
        for path in old.keys() | self._files.keys():
            was, now = old.get(path), self._files.get(path)
            if was != now:
                yield Change(path, was, now)

    def read(self, path: str, id: str) -> bytes:
        file = self._root / path
        if (size := file.stat().st_size) > MAX_BLOB:
            raise TooLarge(f"{path} has {size} bytes, at most {MAX_BLOB} are read")
        return file.read_bytes()

    def folder(self, path: str) -> str | None:
        below = {name: entry for name, entry in self._files.items() if name.startswith(path + "/")}
        return _sum(below) if below else None

    def content(self, path: str) -> Mapping[str, tuple[Entry, bytes]]:
        found = {}
        for name, entry in self._files.items():
            if name.startswith(path + "/") and not is_cache(name):
                data = self.read(name, entry.id) if entry.kind in (PLAIN, PROGRAM) else b""
                found[name[len(path) + 1 :]] = entry, data
        return found


def _sum(files: Mapping[str, Entry]) -> str:
    return hashlib.sha256(repr(sorted(files.items())).encode("utf-8", "surrogateescape")).hexdigest()
