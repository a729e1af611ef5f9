"""Which code keepers and hosts are made of: agent and keeper compare it to see whether the keeper is of another release."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

# everything a keeper, its zygote and the hosts forked from that import before anybody's package
PARTS = ("__init__.py", "errors.py", "bus", "host", "keeper", "sdk", "tasks.py", "zygote")


def code_identity() -> str:
    """A short digest of that code and of the interpreter that runs it, as they are on disk now."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256(f"{sys.executable}\n{sys.version}\n".encode())
    for part in PARTS:
        place = root / part
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(f"{file.relative_to(root)}\n".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:12]
