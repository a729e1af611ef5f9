"""Fixtures of real repositories."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from reconciler.source.source import GitSource
from tests.reconciler.source.repos import Repo


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return Repo(tmp_path / "repo")


@pytest.fixture
async def follow(tmp_path: Path) -> AsyncIterator[Callable[..., GitSource]]:
    """Makes sources that are closed at the end; `name` gives one its own mirror."""
    made: list[GitSource] = []

    def make(url: Path | str, name: str = "source", **options: Any) -> GitSource:
        source = GitSource(str(url), mirror_dir=tmp_path / name, cache_dir=tmp_path / "cache", **options)
        made.append(source)
        return source

    yield make
    for source in made:
        await source.close()
