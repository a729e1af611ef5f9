"""A disk that is full is neither a damaged copy nor an unreachable repository, whoever met it."""

from __future__ import annotations

import errno
import os

from agent.packages.store import DiskFull

_FULL = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))


def full_disk(error: Exception) -> DiskFull | None:
    """The error as DISK_FULL if that is what it is; libgit2 only tells it in its text."""
    text = str(error)
    if (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)) or any(
        said in text for said in _FULL
    ):
        return DiskFull(f"no room for what comes from Git: {text}", hint="free some space; it is tried again by itself")
    return None
