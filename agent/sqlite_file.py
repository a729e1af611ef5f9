"""One small sqlite file, opened anew for each use; for what can be found out again, so that a file that makes no sense is kept
aside and a new one begun."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from agent.errors import Waiting

PATIENCE = 10.0  # seconds to wait for another process that writes


@contextmanager
def transaction(path: Path, schema: str) -> Iterator[sqlite3.Connection]:
    """A connection whose changes are written at the end, or not at all. Raises Waiting (STORE_WRITE)."""
    try:
        with closing(_opened(path, schema)) as db, db:
            yield db
    except sqlite3.Error as error:
        raise Waiting(f"{path.name}: {error}", code="STORE_WRITE") from error


def _opened(path: Path, schema: str) -> sqlite3.Connection:
    try:
        return _connect(path, schema)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):  # locked, full or not allowed: the file itself is whole
            raise
    path.replace(path.with_name(f"{path.name}.bad"))
    return _connect(path, schema)


def _connect(path: Path, schema: str) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path, timeout=PATIENCE)
    try:
        db.execute("PRAGMA journal_mode=DELETE")  # unlike WAL it can be read on a disk that is full
        db.executescript(schema)
    except sqlite3.Error:
        db.close()
        raise
    return db
