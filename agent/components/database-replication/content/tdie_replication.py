"""Keeps tables of one database like those of another."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

import sqlalchemy as sa
from tdie_tables import Emptied, Key, Pair, Wanted, WrongTable, engine
from tdie_values import canonical, digest, from_text, to_text, together

from agent.sdk import Component, Message, MessagePublisher, Settings, SettingsError, finish, periodic

T = TypeVar("T")


@dataclass
class Count:
    """What one pass over a table did. Rows."""

    read: int = 0
    written: int = 0
    deleted: int = 0


class DatabaseReplication(Component):
    """Copies all tables again and again; each chunk is one transaction, with the place to go on from."""

    def __init__(self, settings: Settings, publisher: MessagePublisher | None, log: logging.Logger) -> None:
        self._tables = tuple(_wanted(raw, number, settings) for number, raw in enumerate(settings.sequence("tables")))
        if not self._tables:
            raise SettingsError("the setting 'tables' names no table", where=settings.name)
        self._every = settings.seconds("interval", 60.0)
        self._size = settings.integer("chunkSize", 1000)
        if self._size < 1 or self._every <= 0:
            raise SettingsError("'chunkSize' and 'interval' must be positive", where=settings.name)
        self._create = settings.flag("createTables", True)
        self._source = engine(settings.secret("source"), settings.secret("sourcePassword", None))
        self._target = engine(settings.secret("target"), settings.secret("targetPassword", None))
        self._publisher, self._log = publisher, log
        self._pairs: dict[str, Pair] = {}

    async def start(self) -> None:
        self.spawn(periodic(self._all, self._every, at_once=True), name="replicate")

    async def close(self) -> None:
        for database in (self._source, self._target):
            await asyncio.to_thread(database.dispose)

    async def _all(self) -> None:
        """Each table once. A database that is away is tried again with the next round; wrong tables fail the component."""
        for wanted in self._tables:
            began = asyncio.get_running_loop().time()
            try:
                count = await self._table(wanted)
            except WrongTable:
                raise
            except (sa.exc.SQLAlchemyError, OSError, Emptied) as error:
                self._pairs.pop(wanted.name, None)  # the table may be another one when the database is back
                self._log.warning(
                    "replicating %s failed, trying again in %g s: %s", wanted.name, self._every, _text(error)
                )
                await self._say("ReplicationFailed", {"table": wanted.name, "error": _text(error)})
                continue
            seconds = round(asyncio.get_running_loop().time() - began, 3)
            told = {"table": wanted.name, "read": count.read, "written": count.written, "deleted": count.deleted}
            if count.written or count.deleted:
                self._log.info("replicated %s", wanted.name, extra={**told, "seconds": seconds})
                await self._say("ReplicationDone", {**told, "seconds": seconds})

    async def _table(self, wanted: Wanted) -> Count:
        pair = self._pairs.get(wanted.name)
        if pair is None:
            owner = self.name.partition(".")[0]
            pair = await _whole(Pair, self._source, self._target, wanted, owner, self._create)
            self._pairs[wanted.name] = pair
        return await (self._compare(pair) if wanted.mode == "compare" else self._follow(pair))

    async def _compare(self, pair: Pair) -> Count:
        """Every row, chunk by chunk: where the hashes of a chunk differ, its rows are compared and written."""
        count = Count()
        held = await _whole(pair.position)
        after: Key | None = from_text(held) if held is not None else None
        if pair.wanted.deletes and not pair.wanted.allow_empty and await _whole(pair.emptied):
            raise Emptied(f"{pair.wanted.name} is empty in the source", hint="say allowEmpty: true if it should be")
        while True:
            rows = await _whole(pair.chunk, after, self._size)
            last = pair.key_of(rows[-1]) if len(rows) == self._size else None  # None: as far as it goes
            await self._chunk(pair, rows, after, last, count)
            if last is None:
                return count
            after = last

    async def _chunk(self, pair: Pair, rows: list[Any], after: Key | None, last: Key | None, count: Count) -> None:
        """The target's rows of this range of keys are those of the source."""
        wanted = {_same(pair.key_of(row)): digest(row) for row in rows}
        there: dict[tuple[str, ...], bytes] = {}
        gone: list[Key] = []
        begin = after
        while True:
            found = await _whole(pair.there, begin, last, self._size)
            for row in found:
                if (key := _same(pair.key_of(row))) in wanted:
                    there[key] = digest(row)
                else:
                    gone.append(pair.key_of(row))
            if len(found) < self._size:
                break
            begin = pair.key_of(found[-1])
            if len(gone) >= self._size and pair.wanted.deletes:  # many more here than there: not all in memory
                await _whole(pair.write, [], gone, to_text(after) if after is not None else None)
                count.deleted += len(gone)
                gone = []
        if not pair.wanted.deletes:
            gone = []
        changed: list[Any] = []
        if together(wanted.values()) != together(there.values()):
            changed = [row for row in rows if there.get(key := _same(pair.key_of(row))) != wanted[key]]
        position = to_text(last) if last is not None else None
        await _whole(pair.write, changed, gone, position)
        count.read += len(rows)
        count.written += len(changed)
        count.deleted += len(gone)

    async def _follow(self, pair: Pair) -> Count:
        """Rows whose watermark is not below the last one seen, so that none of the same moment is missed."""
        count = Count()
        held = await _whole(pair.position)
        mark: Any = from_text(held)[0] if held is not None else None
        start = _earlier(mark, pair.wanted.overlap)
        after: Key | None = None
        while True:
            rows = await _whole(pair.marked, start, after, self._size)
            if not rows:
                return count
            start, after = pair.mark_of(rows[-1]), pair.key_of(rows[-1])
            newest = start if mark is None or start > mark else mark
            await _whole(pair.write, rows, [], to_text((newest,)))
            count.read += len(rows)
            count.written += sum(1 for row in rows if mark is None or pair.mark_of(row) > mark)  # the rest was here
            if len(rows) < self._size:
                return count

    async def _say(self, kind: str, content: Mapping[str, Any]) -> None:
        if self._publisher is None:
            return
        try:
            await self._publisher.publish(Message(dict(content), kind))
        except Exception as error:  # noqa: BLE001 - whatever a publisher raises, copying goes on
            self._log.warning("publishing %s failed: %s", kind, error)


async def _whole(work: Callable[..., T], *arguments: Any) -> T:
    """What the work returns, done in a thread to its end: when we are cancelled meanwhile, no connection is left in use."""
    return await finish(asyncio.to_thread(work, *arguments))


def _wanted(raw: Any, number: int, settings: Settings) -> Wanted:
    where = f"{settings.name} tables[{number}]"
    if isinstance(raw, str):
        return Wanted(raw)
    if not isinstance(raw, Mapping):
        raise SettingsError("a table is a name, or a mapping with name", where=where)
    return Settings(raw, where).into(Wanted)


def _same(key: Sequence[Any]) -> tuple[str, ...]:
    return tuple(canonical(value) for value in key)


def _earlier(mark: Any, overlap: float) -> Any:
    if mark is None or not overlap:
        return mark
    return mark - timedelta(seconds=overlap) if isinstance(mark, datetime) else mark - overlap


def _text(error: Exception) -> str:
    """One line, without the statement and its values."""
    inner = getattr(error, "orig", None)
    return " ".join(str(inner if inner is not None else error).split())[:300] or type(error).__name__
