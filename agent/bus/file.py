"""The sqlite file of a node's bus. Used by one thread; a transaction is made of many calls."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

from agent.bus.values import Delivery, Envelope

SCHEMA = 1
_MIGRATIONS = (
    """
    CREATE TABLE messages (seq INTEGER PRIMARY KEY, id TEXT NOT NULL, topic TEXT NOT NULL, type TEXT NOT NULL,
        accepted REAL NOT NULL, body BLOB NOT NULL) STRICT;
    CREATE TABLE deliveries (seq INTEGER NOT NULL, instance TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
        hops INTEGER NOT NULL DEFAULT 0, dead INTEGER NOT NULL DEFAULT 0, error TEXT NOT NULL DEFAULT '',
        PRIMARY KEY (seq, instance)) STRICT, WITHOUT ROWID;
    CREATE TABLE seen (n INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, at REAL NOT NULL) STRICT;
    CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    """,
)
_TRIM_AT_ONCE = 5000  # ids forgotten in one transaction

Key = tuple[int, str]  # sequence number and instance: names a delivery


class BusFile:
    """Messages, deliveries, and the ids that were here. Every method belongs to the transaction that is open."""

    def __init__(self, path: Path) -> None:
        """Opens the file; one that makes no sense is kept aside, and `rebuilt` says so. Raises sqlite3.OperationalError."""
        self.path = path
        self.rebuilt = ""
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.db = _opened(path)
        except (sqlite3.DatabaseError, ValueError) as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            aside = _put_aside(path)
            self.rebuilt = f"{path.name} could not be used ({str(error).splitlines()[0]}); it is kept as {aside.name}"
            self.db = _opened(path)

    def begin(self, *, durable: bool) -> None:
        """A transaction begins; `durable`: its commit returns once it is on disk."""
        self.db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
        self.db.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        self.db.execute("COMMIT")

    def rollback(self) -> None:
        if self.db.in_transaction:
            self.db.execute("ROLLBACK")

    def close(self) -> None:
        self.db.close()

    # ------------------------------------------------------------------------------------------- messages

    def deliveries(self) -> tuple[list[Delivery], int]:
        """Everything that is not done, oldest first, and the highest sequence number so far."""
        rows = self.db.execute(
            "SELECT d.seq, d.instance, m.id, m.topic, m.type, length(m.body), m.accepted, d.attempts, d.hops, d.error,"
            " d.dead FROM deliveries d JOIN messages m USING (seq) ORDER BY d.seq"
        )
        found = [Delivery(*row) for row in rows]
        for delivery in found:
            delivery.dead = bool(delivery.dead)
        return found, int(self.db.execute("SELECT coalesce(max(seq), 0) FROM messages").fetchone()[0])

    def accept(self, entries: Sequence[tuple[int, Envelope]], now: float) -> list[tuple[str, ...]]:
        """The messages are here, each for those of its instances that did not have it before; these are returned."""
        fresh: list[tuple[str, ...]] = []
        messages, deliveries = [], []
        for seq, envelope in entries:
            new = tuple(name for name in envelope.instances if self._first_time(envelope.id, name, now))
            fresh.append(new)
            if new:
                messages.append((seq, envelope.id, envelope.topic, envelope.type, now, envelope.body))
                deliveries += [(seq, name, envelope.hops) for name in new]
        self.db.executemany("INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?)", messages)
        self.db.executemany("INSERT INTO deliveries (seq, instance, hops) VALUES (?, ?, ?)", deliveries)
        return fresh

    def route(self, key: Key, id: str, instances: Iterable[str], now: float) -> tuple[str, ...]:
        """The message of this delivery goes to these instances instead; those that did not have it before are returned."""
        new = tuple(name for name in instances if self._first_time(id, name, now))
        self.db.executemany("INSERT INTO deliveries (seq, instance) VALUES (?, ?)", [(key[0], name) for name in new])
        self.done([key])
        return new

    def done(self, keys: Sequence[Key]) -> None:
        """Nothing is left to do for these; a message without deliveries is gone. Their ids stay known."""
        self.db.executemany("DELETE FROM deliveries WHERE seq = ? AND instance = ?", keys)
        self.db.executemany(
            "DELETE FROM messages WHERE seq = ?1 AND NOT EXISTS (SELECT 1 FROM deliveries WHERE seq = ?1)",
            [(seq,) for seq, _ in keys],
        )

    def handed_on(self, keys: Sequence[Key], ids: Sequence[str]) -> None:
        """Another node has these now. Their ids are forgotten, so that it may hand them back."""
        self.done(keys)
        seen = [(_seen_key(id, instance),) for id, (_, instance) in zip(ids, keys, strict=True)]
        self.db.executemany("DELETE FROM seen WHERE key = ?", seen)

    def failed(self, key: Key, attempts: int, error: str, *, dead: bool) -> None:
        """It was tried so often, and this is how it ended last."""
        self.db.execute(
            "UPDATE deliveries SET attempts = ?, error = ?, dead = ? WHERE seq = ? AND instance = ?",
            (attempts, error, int(dead), *key),
        )

    def bodies(self, seqs: Sequence[int]) -> dict[int, bytes]:
        """The bodies of these messages, as far as they are here."""
        marks = ",".join("?" * len(seqs))
        return dict(self.db.execute(f"SELECT seq, body FROM messages WHERE seq IN ({marks})", tuple(seqs)))

    # ------------------------------------------------------------------------------------------- ids and facts

    def trim(self, before: float, keep: int) -> int:
        """Ids older than `before`, and beyond `keep` of them, are forgotten, some thousand at a time; how many were."""
        row = self.db.execute("SELECT coalesce(max(n), 0) FROM seen").fetchone()
        oldest = self.db.execute("SELECT n, at FROM seen ORDER BY n LIMIT ?", (_TRIM_AT_ONCE,)).fetchall()
        gone = [(n,) for n, at in oldest if at < before or n <= int(row[0]) - keep]
        self.db.executemany("DELETE FROM seen WHERE n = ?", gone)
        return len(gone)

    def fact(self, name: str) -> str:
        """What was remembered under this name; empty when nothing was."""
        row = self.db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return str(row[0]) if row else ""

    def remember(self, name: str, value: str) -> None:
        self.db.execute(
            "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", (name, value)
        )

    def _first_time(self, id: str, instance: str, now: float) -> bool:
        cursor = self.db.execute("INSERT OR IGNORE INTO seen (key, at) VALUES (?, ?)", (_seen_key(id, instance), now))
        return cursor.rowcount == 1


def _seen_key(id: str, instance: str) -> str:
    return f"{id}\0{instance}"


def _opened(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        path.chmod(0o600)
        if db.execute("PRAGMA quick_check").fetchone()[0] != "ok":
            raise ValueError("it is damaged")
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version > SCHEMA:
            raise ValueError(f"a newer agent wrote it (version {version}, this one knows {SCHEMA})")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA wal_autocheckpoint=4000")
        for number, script in enumerate(_MIGRATIONS[version:], start=version + 1):
            db.executescript(f"BEGIN; {script} PRAGMA user_version={number}; COMMIT;")
    except BaseException:
        db.close()
        raise
    return db


def _put_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.bad-{number}")).exists():
        number += 1
    for end in ("", "-wal", "-shm"):
        beside = path.with_name(path.name + end)
        if beside.exists():
            beside.rename(aside.with_name(aside.name + end))
    return aside
