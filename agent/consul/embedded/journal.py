"""The embedded store on disk: one sqlite file, every write durable before it is answered, damage never taken for emptiness."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent.consul.embedded.base import Kind
from agent.errors import Invalid

APPLICATION = 0x74646965  # "tdie"
VERSION = 1

Rows = dict[tuple[Kind, str], Any]


class Journal:
    """Rows by (kind, id). Used from one thread at a time."""

    def __init__(self, path: Path, db: sqlite3.Connection) -> None:
        self.path = path
        self._db = db

    @classmethod
    def open(cls, path: Path) -> tuple[Journal, Rows]:
        """The journal and everything in it; a new file when there is none.

        Raises Invalid when the file is damaged, not ours, or in use: it stays as it is, for whoever wants to rescue it.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                _create(path)
        except (OSError, sqlite3.Error) as error:
            raise Invalid(f"cannot create {path}: {error}", code="STORE_UNUSABLE") from error
        try:
            db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
        except sqlite3.Error as error:
            raise _damaged(path, str(error)) from error
        try:
            rows = _read(path, db)
        except sqlite3.OperationalError as error:
            db.close()
            if "locked" in str(error):
                raise Invalid(f"{path} is in use by another server", code="STORE_IN_USE") from error
            raise _damaged(path, str(error)) from error
        except (sqlite3.Error, ValueError, KeyError) as error:
            db.close()
            raise _damaged(path, str(error)) from error
        except Invalid:
            db.close()
            raise
        return cls(path, db), rows

    def write(self, changes: Mapping[tuple[Kind, str], Any]) -> None:
        """All changes are on disk, or (with an sqlite3.Error) none."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for (kind, name), body in changes.items():
                if body is None:
                    self._db.execute("DELETE FROM rows WHERE kind = ? AND id = ?", (kind, name))
                else:
                    text = json.dumps(body, separators=(",", ":"))
                    self._db.execute("INSERT OR REPLACE INTO rows VALUES (?, ?, ?)", (kind, name, text))
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise

    def close(self) -> None:
        self._db.close()


def _create(path: Path) -> None:
    """Build the file beside its place and move it there, so that an empty file always means damage."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    new.unlink(missing_ok=True)
    db = sqlite3.connect(new, isolation_level=None)
    try:
        db.execute(f"PRAGMA application_id = {APPLICATION}")
        db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute("CREATE TABLE rows (kind TEXT, id TEXT, body TEXT, PRIMARY KEY (kind, id)) STRICT, WITHOUT ROWID")
        db.execute("INSERT INTO rows VALUES ('meta', 'index', '1')")
    finally:
        db.close()
    new.chmod(0o600)
    new.rename(path)


def _read(path: Path, db: sqlite3.Connection) -> Rows:
    # One server at a time: two would answer from two memories. Before anything else, or it comes too late.
    db.execute("PRAGMA locking_mode = EXCLUSIVE")
    application = db.execute("PRAGMA application_id").fetchone()[0]
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if application != APPLICATION:
        raise _damaged(path, "it is not the file of an embedded Consul")
    if version != VERSION:
        raise Invalid(f"{path} is of version {version}; this program reads {VERSION}", code="STORE_VERSION")
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("BEGIN EXCLUSIVE")
    db.execute("COMMIT")
    found = db.execute("PRAGMA integrity_check").fetchone()[0]
    if found != "ok":
        raise _damaged(path, found)
    rows: Rows = {(kind, name): json.loads(body) for kind, name, body in db.execute("SELECT kind, id, body FROM rows")}
    if not isinstance(rows["meta", "index"], int):
        raise _damaged(path, "its index is no number")
    return rows


def _damaged(path: Path, why: str) -> Invalid:
    return Invalid(
        f"{path} is damaged and was left as it is: {' '.join(why.split())[:200]}",
        code="STORE_DAMAGED",
        hint="restore a copy, or move the file away to start with an empty Consul",
    )
