"""Which files of a tree are documents, decoded: kept up to date at the cost of what changed."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase

from reconciler.model.documents import Package
from reconciler.source.decode import Decoded, Found, decode
from reconciler.source.walk import LINK, MAX_FILES, PLAIN, PROGRAM, Change, TooLarge, Tree
from reconciler.source.yaml import Flaw

IGNORE_FILE = ".tdieignore"


class Catalog:
    """Every YAML file outside dot-folders by path, and what else of a tree matters to validation."""

    def __init__(self) -> None:
        self.files: dict[str, Decoded] = {}
        self.ids: dict[str, str] = {}
        self.unsupported: dict[str, str] = {}  # path → what it is
        self.ignored: tuple[str, ...] = ()
        self._decoded: dict[str, Decoded] = {}  # by blob id
        self._tree: Tree | None = None
        self._count = 0
        self._paths: list[str] | None = None

    def advance(self, tree: Tree) -> dict[str, tuple[Decoded | None, Decoded | None]] | None:
        """The catalog describes `tree`. Comes back: changed YAML files as (before, after); None when more than those changed.

        An error leaves the catalog unusable for increments, and the next call starts afresh.
        """
        before, self._tree = self._tree, None
        if before is None:
            self._clear()
        changed: dict[str, tuple[Decoded | None, Decoded | None]] = {}
        only_yaml = before is not None
        for change in tree.changes(before):
            self._count += (change.after is not None) - (change.before is not None)
            if self._count > MAX_FILES:
                raise TooLarge(f"more than {MAX_FILES} files")
            only_yaml = self._take(tree, change, changed) and only_yaml
        self._tree = tree
        self._forget()
        return changed if only_yaml else None

    def _clear(self) -> None:
        self.files.clear()
        self.ids.clear()
        self.unsupported.clear()
        self.ignored, self._count, self._paths = (), 0, None

    def _take(self, tree: Tree, change: Change, changed: dict[str, tuple[Decoded | None, Decoded | None]]) -> bool:
        """Note one change; False when it concerns more than one document file."""
        path, entry = change.path, change.after
        if path == IGNORE_FILE:
            self.ignored = _patterns(tree.read(path, entry.id)) if entry is not None else ()
            return False
        if entry is not None and entry.kind not in (PLAIN, PROGRAM):
            self.unsupported[path] = entry.kind
            entry = None
            fine = False
        else:
            fine = self.unsupported.pop(path, None) is None
        if not _is_candidate(path):
            return fine
        before = self.files.pop(path, None) if entry is None else self.files.get(path)
        if entry is None:
            self.ids.pop(path, None)
        else:
            self.files[path] = self._decode(tree, path, entry.id)
            self.ids[path] = entry.id
        after = self.files.get(path)
        if (before is None) != (after is None):
            self._paths = None
        changed[path] = before, after
        return fine

    def _decode(self, tree: Tree, path: str, id: str) -> Decoded:
        found = self._decoded.get(id)
        if found is None:
            found = self._decoded[id] = decode(tree.read(path, id))
        return found

    def _forget(self) -> None:
        if len(self._decoded) > 2 * len(self.files) + 1000:
            wanted = set(self.ids.values())
            self._decoded = {id: decoded for id, decoded in self._decoded.items() if id in wanted}

    def paths(self) -> list[str]:
        """Every candidate in path order."""
        if self._paths is None:
            self._paths = sorted(self.files)
        return self._paths

    def package_folders(self) -> tuple[frozenset[str], list[tuple[str, Found]]]:
        """Folders whose content is a package, and Package documents that lie within their own folder.

        Outer folders win: what lies inside a package is content, also if it looks like a Package document.
        """
        folders: set[str] = set()
        inside: list[tuple[str, Found]] = []
        declared = [
            (path, found, found.document.spec.source.path)
            for path in self.files
            if not self.is_ignored(path)
            for found in self.files[path].found
            if isinstance(found.document, Package) and found.document.spec.source.path is not None
        ]
        for path, found, folder in sorted(declared, key=lambda row: (row[0].count("/"), row[0], row[1].index)):
            if is_below(path, folders):
                continue
            if is_below(path, (folder,)):
                inside.append((path, found))
            folders.add(folder)
        return frozenset(folders), inside

    def is_ignored(self, path: str) -> bool:
        """Whether .tdieignore names the path or a folder above it."""
        return bool(self.ignored) and any(_matches(path, pattern) for pattern in self.ignored)


def is_below(path: str, folders: Iterable[str]) -> bool:
    """Whether one of the folders holds the path."""
    return any(path.startswith(folder + "/") for folder in folders)


def is_content(path: str, folders: frozenset[str]) -> bool:
    """`is_below` for many folders: at the cost of the path's depth."""
    at = path.find("/")
    while at >= 0:
        if path[:at] in folders:
            return True
        at = path.find("/", at + 1)
    return False


def _is_candidate(path: str) -> bool:
    return path.endswith((".yaml", ".yml")) and not any(part.startswith(".") for part in path.split("/"))


def _patterns(data: bytes) -> tuple[str, ...]:
    lines = (line.strip() for line in data.decode("utf-8-sig", "replace").splitlines())
    return tuple(line for line in lines if line and not line.startswith("#"))


def _matches(path: str, pattern: str) -> bool:
    """Simple globs: with a slash from the top, else any name; a folder stands for everything below it."""
    pattern = pattern.rstrip("/")
    anchored = "/" in pattern
    pattern = pattern.lstrip("/")
    while path:
        if fnmatchcase(path if anchored else posixpath.basename(path), pattern):
            return True
        path = posixpath.dirname(path)
    return False


def unsupported(catalog: Catalog) -> Iterator[tuple[str, Flaw]]:
    """Links, submodules and special files: refused wherever they are, never followed."""
    for path, kind in catalog.unsupported.items():
        if not any(part.startswith(".") for part in path.split("/")[:-1]):
            hint = "; write the content out" if kind == LINK else ""
            yield path, Flaw(1, 1, "UNSUPPORTED_TREE_ENTRY", f"a {kind} is never followed{hint}")
