"""Writes each message it receives into a table of a SQLite file. A message that comes twice is one row."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing

from agent.sdk import Component, Message, Settings

BUSY = 10.0  # seconds to wait for somebody else who writes


class DatabaseWriter(Component):
    """A row for each message: its id is the key, so doing it again changes nothing."""

    def __init__(self, settings: Settings) -> None:
        self._path = settings.path("database")
        self._table = settings.text("table", "messages")

    async def start(self) -> None:
        await asyncio.to_thread(self._prepare)

    async def check(self) -> None:
        """Healthy is who can read the table: a full or broken disk is seen before a message comes."""
        await asyncio.to_thread(self._read)

    async def receive(self, message: Message) -> None:
        await asyncio.to_thread(self._write, message)

    def _prepare(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self._path, timeout=BUSY)) as db, db:
            db.execute(
                f"CREATE TABLE IF NOT EXISTS {self._table} (id TEXT PRIMARY KEY, type TEXT, source TEXT, file TEXT,"
                " at TEXT, correlation_id TEXT, content TEXT, properties TEXT)"
            )

    def _read(self) -> None:
        with closing(sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", timeout=BUSY, uri=True)) as db:
            db.execute(f"SELECT count(*) FROM {self._table}")

    def _write(self, message: Message) -> None:
        content = message.content if isinstance(message.content, str) else json.dumps(message.content)
        row = (
            message.id, message.type, message.source, message.properties.get("FileName", ""),
            message.timestamp.isoformat(), message.correlation_id, content, json.dumps(dict(message.properties)),
        )  # fmt: skip
        with closing(sqlite3.connect(self._path, timeout=BUSY)) as db, db:
            db.execute(f"INSERT INTO {self._table} VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO NOTHING", row)
