"""What a host in an environment of its own takes from the agent's: what its API and the built-in packages without dependencies
need (a scheduler beside a publisher with a venv), nothing that the environment has itself."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_API = {"anyio", "click", "h11", "httptools", "idna", "sniffio", "starlette", "typing_extensions", "uvicorn"}
_AIOHTTP = {"aiohappyeyeballs", "aiohttp", "aiosignal", "attr", "attrs", "frozenlist", "multidict", "propcache", "yarl"}
BORROWED = frozenset({*_API, *_AIOHTTP, "cronsim", "watchfiles"})

libraries = ""
"""The folder of the agent's libraries; empty in a host that was forked and has them anyway."""


class _Lender(MetaPathFinder):
    """Asked last, so only for what nobody else has."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(fullname, [libraries]) if path is None and fullname in BORROWED else None


def lend() -> None:
    """The borrowed libraries can be imported from now on."""
    if libraries and not any(isinstance(finder, _Lender) for finder in sys.meta_path):
        sys.meta_path.append(_Lender())
