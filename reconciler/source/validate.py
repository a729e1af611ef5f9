"""Checking files that are not committed yet, through the same code that reads commits."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path

from agent.errors import Missing, TdieError
from reconciler.model.desired import DesiredState
from reconciler.model.problems import Problem
from reconciler.source.fetch import download
from reconciler.source.resolve import Commit, Resolved, Resolver
from reconciler.source.shelf import Shelf
from reconciler.source.walk import FolderTree

WORKTREE = "worktree"


@dataclass(frozen=True, slots=True)
class Checked:
    """What a folder asks for, or every problem in it."""

    desired: DesiredState | None
    problems: tuple[Problem, ...]


async def load_worktree(path: Path, *, cache_dir: Path | None = None, cluster_name: str | None = None) -> Checked:
    """The desired state that the files of a folder spell, committed or not.

    Packages are packed into `cache_dir`, or a temporary folder. Raises TdieError when the folder or a package at a URL
    cannot be read.
    """
    if not await asyncio.to_thread(path.is_dir):
        raise Missing(f"there is no folder {path}")
    if cache_dir is not None:
        return await _load(path, cache_dir, cluster_name)
    with tempfile.TemporaryDirectory(prefix="tdie-validate-") as folder:
        return await _load(path, Path(folder), cluster_name)


async def _load(path: Path, cache: Path, cluster_name: str | None) -> Checked:
    shelf = Shelf(cache, uploads_unknown=True)
    resolved = await asyncio.to_thread(_resolve, path, shelf, cluster_name)
    if resolved.needed:
        for needed in resolved.needed:
            await download(needed, shelf.download_path(needed.sha256))
        resolved = await asyncio.to_thread(_resolve, path, shelf, cluster_name)
    return Checked(resolved.desired, resolved.problems)


def _resolve(path: Path, shelf: Shelf, cluster_name: str | None) -> Resolved:
    try:
        return Resolver(shelf, cluster_name=cluster_name).resolve(FolderTree(path), Commit(WORKTREE, "not committed"))
    except OSError as error:
        raise TdieError(f"cannot read {error.filename}: {error.strerror}", code="UNREADABLE") from error
