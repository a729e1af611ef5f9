"""A bare copy of the repository that is ours alone: never a checkout, only refs we own, replaced as a whole when damaged.

Everything here blocks and belongs in one worker thread: libgit2's objects are not thread-safe.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pygit2

from agent.errors import Invalid, Missing, TdieError, Waiting
from reconciler.source.access import (
    DEFAULT_ACCESS,
    DEFAULT_LIMITS,
    Access,
    Callbacks,
    FetchLimits,
    is_local,
    normal_url,
    prepare,
    shown_url,
)
from reconciler.source.disk import full_disk
from reconciler.source.resolve import Commit
from reconciler.source.walk import Corrupt, GitTree

TIP = "refs/tdie/tip"  # what the followed ref pointed at when it was last fetched
GOOD = "refs/tdie/good"  # keeps the commit in force from being lost to a force push
_SHA = re.compile(r"[0-9a-f]{7,40}")
_BASE = re.compile(r"[^~^:@]+")
# libgit2 has one exception for everything; these words mean that our copy or theirs is damaged, not that it is away.
_DAMAGE = re.compile(
    r"object not found|inflat|zlib|checksum|mismatch|corrupt|locked file|lock file|packfile|odb|loose object|"
    r"failed to parse|invalid|missing (blob|tree|commit)",
    re.IGNORECASE,
)


class Mirror:
    """The bare copy below `folder` of the repository at `url`, following `ref` (a branch, a tag, a full ref or HEAD)."""

    def __init__(
        self, url: str, ref: str, folder: Path, *, access: Access = DEFAULT_ACCESS, limits: FetchLimits = DEFAULT_LIMITS
    ) -> None:
        self.url = normal_url(url)
        self.shown = shown_url(self.url)
        self.ref = ref
        self._path = folder / "mirror.git"
        self._access = access
        self._limits = limits
        self._opened: pygit2.Repository | None = None
        folder.mkdir(parents=True, exist_ok=True)
        prepare(access)

    @property
    def repository(self) -> pygit2.Repository:
        if self._opened is None:
            self._opened = _open(self._path)
        return self._opened

    def fetch(self) -> str:
        """The commit the followed ref points at now, fetched.

        Raises Waiting (GIT_UNREACHABLE), Missing (GIT_REF_MISSING), Refused (GIT_TOO_LARGE), Corrupt (GIT_CORRUPT).
        """
        return self._fetch_ref(self.repository, self.ref, TIP)

    def tip(self) -> str | None:
        """The commit that was fetched last."""
        try:
            return str(self.repository.references[TIP].peel(pygit2.Commit).id)
        except (KeyError, pygit2.GitError, ValueError):
            return None

    def rebuild(self) -> str:
        """Fetch everything anew beside the damaged copy, then take its place. Errors as of `fetch`; the old copy stays then."""
        beside = self._path.with_name("mirror.new")
        shutil.rmtree(beside, ignore_errors=True)
        fresh = _open(beside)
        try:
            tip = self._fetch_ref(fresh, self.ref, TIP)
        except TdieError:
            fresh.free()
            shutil.rmtree(beside, ignore_errors=True)
            raise
        fresh.free()
        self.close()
        damaged = self._path.with_name("mirror.old")
        shutil.rmtree(damaged, ignore_errors=True)
        if self._path.exists():
            self._path.rename(damaged)
        beside.rename(self._path)
        shutil.rmtree(damaged, ignore_errors=True)
        return tip

    def resolve(self, revision: str) -> str:
        """The commit a revision names: `HEAD~1` (of the followed ref), a branch, a tag, or a commit id. Missing if none."""
        match = _BASE.match(revision)
        base = match[0] if match else revision
        rest = revision[len(base) :]
        if base == "HEAD" and (tip := self.tip() or self.fetch()):
            return self._peel(tip + rest, revision)
        if _SHA.fullmatch(base):
            try:
                return self._peel(base + rest, revision)
            except Missing:
                pass  # not here yet, or a branch with such a name
        try:
            return self._peel(self._fetch_ref(self.repository, base, f"refs/tdie/revisions/{base}") + rest, revision)
        except Missing:
            if _SHA.fullmatch(base):
                self._talk(self.repository, ["+refs/heads/*:refs/tdie/heads/*"])
                return self._peel(base + rest, revision)
            raise

    def has(self, commit: str) -> bool:
        """Whether the commit is in the copy."""
        return _SHA.fullmatch(commit) is not None and _holds(self.repository, commit)

    def descends(self, new: str, old: str) -> bool:
        """Whether history only went forward from `old` to `new`. False also when `old` is unknown."""
        if new == old:
            return True
        with _reading(new):
            return self.has(old) and bool(self.repository.descendant_of(new, old))

    def keep(self, commit: str) -> None:
        """The commit stays in the copy, whatever happens to the followed ref."""
        self.repository.references.create(GOOD, commit, force=True)

    def read(self, commit: str, subdir: str = "") -> tuple[Commit, GitTree]:
        """A commit and the tree below `subdir` of it. Raises Corrupt, or Invalid (PATH_MISSING)."""
        with _reading(commit):
            found = self.repository[commit].peel(pygit2.Commit)
            tree = GitTree(self.repository, str(found.tree_id))
            info = Commit(str(found.id), _line(found.message), _line(found.author.name))
        if subdir:
            below = tree.folder(subdir)
            if below is None:
                raise Invalid(f"there is no folder '{subdir}' in commit {commit[:12]}", code="PATH_MISSING")
            tree = GitTree(self.repository, below)
        return info, tree

    def close(self) -> None:
        """Files are closed; the next use opens them again."""
        if self._opened is not None:
            self._opened.free()
            self._opened = None

    def _fetch_ref(self, repository: pygit2.Repository, ref: str, into: str) -> str:
        heads = self._heads(repository)
        candidates = (ref, f"refs/heads/{ref}", f"refs/tags/{ref}")
        name = next((name for name in candidates if name in heads), None)
        if name is None:
            branches = [head.removeprefix("refs/heads/") for head in heads if head.startswith("refs/heads/")]
            there = f"there is {', '.join(sorted(branches)[:10])}" if branches else "the repository is empty"
            raise Missing(f"{self.shown} has no '{ref}'; {there}", code="GIT_REF_MISSING")
        known = repository.references.get(into)
        if known is None or str(known.target) != heads[name] or not _holds(repository, heads[name]):
            self._talk(repository, [f"+{name}:{into}"])
        with _reading(heads[name]):
            return str(repository.references[into].peel(pygit2.Commit).id)

    def _heads(self, repository: pygit2.Repository) -> Mapping[str, str]:
        if is_local(self.url) and not Path(self.url).exists():
            raise self._unreachable("there is no such folder")
        try:
            remote = repository.remotes.create_anonymous(self.url)
            heads = remote.list_heads(callbacks=Callbacks(self._access, self._limits))
            return {head.name: str(head.oid) for head in heads if head.name and not head.name.endswith("^{}")}
        except pygit2.GitError as error:
            raise self._unreachable(str(error)) from error

    def _talk(self, repository: pygit2.Repository, refspecs: list[str]) -> None:
        try:
            remote = repository.remotes.create_anonymous(self.url)
            remote.fetch(refspecs, callbacks=Callbacks(self._access, self._limits))
        except (pygit2.GitError, KeyError, ValueError, OSError) as error:
            if (full := full_disk(error)) is not None:
                raise full from error
            if _DAMAGE.search(str(error)):
                raise Corrupt(self._clean(str(error))) from error
            raise self._unreachable(str(error)) from error

    def _peel(self, text: str, revision: str) -> str:
        try:
            return str(self.repository.revparse_single(text).peel(pygit2.Commit).id)
        except (KeyError, pygit2.GitError, ValueError) as error:
            raise Missing(f"there is no revision '{revision}' in {self.shown}", code="GIT_REF_MISSING") from error

    def _unreachable(self, reason: str) -> Waiting:
        hint = "the repository belongs to another user of this machine" if "not owned by" in reason else ""
        return Waiting(f"{self.shown}: {self._clean(reason)}", code="GIT_UNREACHABLE", hint=hint)

    def _clean(self, text: str) -> str:
        return text.replace(self.url, self.shown).strip()


@contextmanager
def _reading(id: str) -> Iterator[None]:
    """libgit2 says in many ways that an object cannot be read; all of them are Corrupt."""
    try:
        yield
    except (KeyError, ValueError, pygit2.GitError) as error:
        if (full := full_disk(error)) is not None:
            raise full from error
        raise Corrupt(f"oid={id}: {error}") from error


def _holds(repository: pygit2.Repository, id: str) -> bool:
    with _reading(id):
        return id in repository


def _open(path: Path) -> pygit2.Repository:
    """Our bare repository at `path`, made when it is not there or cannot be opened."""
    try:
        repository = pygit2.Repository(str(path))
    except pygit2.GitError:
        shutil.rmtree(path, ignore_errors=True)
        repository = pygit2.init_repository(str(path), bare=True)
    if (
        "http.followRedirects" not in repository.config
    ):  # written once: a full disk must not keep the copy from being read
        repository.config["http.followRedirects"] = "false"
    return repository


def _line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0].strip()[:200]
