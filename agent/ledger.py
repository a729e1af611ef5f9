"""What an agent must remember over a restart: who may command it, what it accepted, and the ports and name it holds.

Written before anything is echoed. A file that makes no sense is kept aside and a new one begun; the keeper's rows tell the rest.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import ValidationError

from agent.errors import TdieError, Waiting
from agent.ordered import Ordered, ordered_from
from agent.wire import Assignment, has_its_digest

T = TypeVar("T")

SCHEMA = 1
_NOT_NOW = frozenset(
    {
        sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_NOMEM,
    }
)  # fmt: skip
_MIGRATIONS = (
    """
    CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    CREATE TABLE ports (replica TEXT PRIMARY KEY, port INTEGER NOT NULL) STRICT;
    """,
)


@dataclass(frozen=True, slots=True)
class Remembered:
    """What the ledger holds. `rebuilt` says why an older file had to be left aside."""

    epoch: int = 0
    assignment: Assignment | None = None
    ordered: Ordered = Ordered()
    ports: Mapping[str, int] = field(default_factory=dict)
    session: str = ""  # the identity session, so that a restarted agent still holds its name
    leases: str = ""  # the lease session, as agent.leases spells it
    failsafe: str = ""  # what was promised to other nodes, and who promises us, as agent.leases spells it
    rebuilt: str = ""


class Ledger(Protocol):
    """The memory of one agent. Raises Waiting (LEDGER_WRITE) when something could not be written; it did not happen then."""

    async def load(self) -> Remembered: ...

    async def save_epoch(self, epoch: int) -> None:
        """On disk afterwards."""
        ...

    async def save_assignment(self, assignment: Assignment, ordered: Ordered) -> None:
        """Both on disk afterwards, or neither."""
        ...

    async def save_session(self, session: str) -> None: ...

    async def save_leases(self, leases: str) -> None:
        """On disk afterwards."""
        ...

    async def save_failsafe(self, failsafe: str) -> None:
        """On disk afterwards."""
        ...

    async def save_ports(self, ports: Mapping[str, int]) -> None:
        """These are all ports now."""
        ...

    async def close(self) -> None: ...


class MemoryLedger:
    """A ledger that lasts as long as its object: for the simulator."""

    def __init__(self) -> None:
        self._held = Remembered()

    async def load(self) -> Remembered:
        return self._held

    async def save_epoch(self, epoch: int) -> None:
        self._held = replace(self._held, epoch=epoch)

    async def save_assignment(self, assignment: Assignment, ordered: Ordered) -> None:
        self._held = replace(self._held, assignment=assignment, ordered=ordered)

    async def save_session(self, session: str) -> None:
        self._held = replace(self._held, session=session)

    async def save_leases(self, leases: str) -> None:
        self._held = replace(self._held, leases=leases)

    async def save_failsafe(self, failsafe: str) -> None:
        self._held = replace(self._held, failsafe=failsafe)

    async def save_ports(self, ports: Mapping[str, int]) -> None:
        self._held = replace(self._held, ports=dict(ports))

    async def close(self) -> None:
        return


class SqliteLedger:
    """A ledger in one sqlite file, used by one thread of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        self._db: sqlite3.Connection | None = None
        self._rebuilt = ""

    async def load(self) -> Remembered:
        return await self._in_thread(self._load)

    async def save_epoch(self, epoch: int) -> None:
        await self._in_thread(lambda: self._write("FULL", ("epoch", str(epoch))))

    async def save_assignment(self, assignment: Assignment, ordered: Ordered) -> None:
        facts = [("assignment", assignment.model_dump_json(by_alias=True)), ("ordered", ordered.as_text())]
        await self._in_thread(lambda: self._write("FULL", *facts))

    async def save_session(self, session: str) -> None:
        await self._in_thread(lambda: self._write("FULL", ("session", session)))

    async def save_leases(self, leases: str) -> None:
        await self._in_thread(lambda: self._write("FULL", ("leases", leases)))

    async def save_failsafe(self, failsafe: str) -> None:
        await self._in_thread(lambda: self._write("FULL", ("failsafe", failsafe)))

    async def save_ports(self, ports: Mapping[str, int]) -> None:
        rows = sorted(ports.items())
        await self._in_thread(lambda: self._write_ports(rows))

    async def close(self) -> None:
        """Everything is written and the file is closed."""
        await self._in_thread(self._close)
        self._thread.shutdown(wait=False)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        # Shielded: a cancelled caller must not leave "written?" open for the next one in line.
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self._thread, work))

    def _load(self) -> Remembered:
        try:
            return self._read(self._open())
        except (sqlite3.DatabaseError, ValidationError, ValueError) as error:
            # Says nothing against the file.
            if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in _NOT_NOW:  # the low byte is the kind
                raise Waiting(f"{self._path.name}: {error}", code="LEDGER_WRITE") from error
            reason = _reason(error)
        self._close()
        aside = self._put_aside()
        self._rebuilt = f"{self._path.name} could not be used ({reason}); it is kept as {aside.name}"
        return self._read(self._open())

    def _open(self) -> sqlite3.Connection:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        self._db = db
        # Nobody else uses the file, and then sqlite needs no file for shared memory: it can be read on a disk that is full.
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        if db.execute("PRAGMA quick_check").fetchone()[0] != "ok":
            raise ValueError("it is damaged")
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version > SCHEMA:
            raise ValueError(f"a newer agent wrote it (version {version}, this one knows {SCHEMA})")
        db.execute("PRAGMA journal_mode=WAL")
        for number, script in enumerate(_MIGRATIONS[version:], start=version + 1):
            db.executescript(f"BEGIN; {script} PRAGMA user_version={number}; COMMIT;")
        return db

    def _read(self, db: sqlite3.Connection) -> Remembered:
        facts = dict(db.execute("SELECT name, value FROM facts"))
        text = facts.get("assignment")
        assignment = Assignment.model_validate_json(text) if text else None
        if assignment is not None and not has_its_digest(assignment):
            raise ValueError("the assignment is not what its digest says")
        return Remembered(
            epoch=int(facts.get("epoch", "0")),
            assignment=assignment,
            ordered=ordered_from(facts.get("ordered", "")),
            ports={str(replica): int(port) for replica, port in db.execute("SELECT replica, port FROM ports")},
            session=facts.get("session", ""),
            leases=facts.get("leases", ""),
            failsafe=facts.get("failsafe", ""),
            rebuilt=self._rebuilt,
        )

    def _put_aside(self) -> Path:
        number = 1
        while (aside := self._path.with_name(f"{self._path.name}.bad-{number}")).exists():
            number += 1
        for end in ("-wal", "-shm"):
            beside = self._path.with_name(self._path.name + end)
            if beside.exists():
                beside.rename(aside.with_name(aside.name + end))
        self._path.rename(aside)
        return aside

    def _write(self, sync: str, *facts: tuple[str, str]) -> None:
        self._execute(
            f"PRAGMA synchronous={sync}",
            (
                "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                list(facts),
            ),
        )

    def _write_ports(self, rows: list[tuple[str, int]]) -> None:
        self._execute(
            "PRAGMA synchronous=NORMAL",  # the keeper's rows tell them too
            ("DELETE FROM ports", [()]),
            ("INSERT INTO ports VALUES (?, ?)", rows),
        )

    def _execute(
        self, pragma: str, *statements: tuple[str, list[tuple[str, int]] | list[tuple[str, str]] | list[tuple[()]]]
    ) -> None:
        if self._db is None:
            raise TdieError("the ledger is not open", code="LEDGER_WRITE")
        try:
            self._db.execute(pragma)
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for statement, rows in statements:
                    self._db.executemany(statement, rows)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise Waiting(f"{self._path.name}: {error}", code="LEDGER_WRITE") from error

    def _close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        return f"assignment.{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error).splitlines()[0]
