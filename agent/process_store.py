"""The processes of hosts in one sqlite file, which outlives the agent: who they are, so that no other is ever taken for one.

Nothing in it cannot be found out again from the keeper: a file that makes no sense is kept aside and a new one begun.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Collection, Iterable
from pathlib import Path

from agent.keeper import linux
from agent.processes import Identity, Look, ProcessRecord, Seen, Zombie
from agent.sqlite_file import transaction

_SCHEMA = """
    CREATE TABLE IF NOT EXISTS processes (
        pid INTEGER NOT NULL, start_time INTEGER NOT NULL, boot_id TEXT NOT NULL,
        replica TEXT NOT NULL, package TEXT NOT NULL, version TEXT NOT NULL, owner TEXT NOT NULL,
        state TEXT NOT NULL, port INTEGER NOT NULL, started_at TEXT NOT NULL,
        PRIMARY KEY (pid, start_time, boot_id)
    ) STRICT;
"""
_COLUMNS = "pid, start_time, boot_id, replica, package, version, owner, state, port, started_at"


class MachineProcesses:
    """Implements Processes with a file and /proc."""

    def __init__(self, path: Path, keeper: str) -> None:
        """`keeper` is the marker of our hosts."""
        self._path, self._keeper = path, keeper
        self._boot = linux.boot_id()

    async def recorded(self) -> tuple[ProcessRecord, ...]:
        return await asyncio.to_thread(self._read)

    async def record(self, new: Iterable[ProcessRecord], gone: Iterable[Identity]) -> None:
        await asyncio.to_thread(self._write, tuple(new), tuple(gone))

    async def look(self, asked: Collection[Identity]) -> Look:
        return await asyncio.to_thread(self._look, tuple(asked))

    async def kill(self, identity: Identity) -> bool:
        return await asyncio.to_thread(self._kill, identity)

    # ------------------------------------------------------------------ the file

    def _read(self) -> tuple[ProcessRecord, ...]:
        with transaction(self._path, _SCHEMA) as db:
            return tuple(
                ProcessRecord(Identity(pid, start, boot), *rest)
                for pid, start, boot, *rest in db.execute(f"SELECT {_COLUMNS} FROM processes")
            )

    def _write(self, new: tuple[ProcessRecord, ...], gone: tuple[Identity, ...]) -> None:
        rows = [
            (r.identity.pid, r.identity.start_time, r.identity.boot_id,
             r.replica, r.package, r.version, r.owner, r.state, r.port, r.started_at)
            for r in new
        ]  # fmt: skip
        with transaction(self._path, _SCHEMA) as db:
            db.executemany(f"INSERT OR REPLACE INTO processes ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            db.executemany(
                "DELETE FROM processes WHERE pid = ? AND start_time = ? AND boot_id = ?",
                [(identity.pid, identity.start_time, identity.boot_id) for identity in gone],
            )

    # ------------------------------------------------------------------ the kernel

    def _look(self, asked: tuple[Identity, ...]) -> Look:
        living, unmarked = [], []
        for name in os.listdir("/proc"):
            if not name.isdigit():
                continue
            env = linux.environ(int(name))
            if not env:
                unmarked.append(int(name))  # an ended process shows no environment
            elif env.get(linux.MARKER_KEEPER) == self._keeper and (stat := linux.stat(int(name))) and not stat.dead:
                identity = Identity(stat.pid, stat.start_time, self._boot)
                living.append(Seen(identity, env.get("TDIE_REPLICA", ""), env.get(linux.MARKER_HOST, "")))
        ours = {seen.identity.pid for seen in living}
        stats = (linux.stat(pid) for pid in unmarked)
        zombies = [Zombie(s.pid, s.parent) for s in stats if s is not None and s.state == "Z" and s.parent in ours]
        return Look(
            tuple(sorted(living, key=lambda s: s.identity)), tuple(zombies), frozenset(filter(self._alive, asked))
        )

    def _alive(self, identity: Identity) -> bool:
        stat = linux.stat(identity.pid) if identity.boot_id == self._boot else None
        return stat is not None and stat.start_time == identity.start_time and not stat.dead

    def _kill(self, identity: Identity) -> bool:
        descriptor = linux.hold(identity.pid, identity.start_time) if identity.boot_id == self._boot else None
        if descriptor is None:
            return False
        try:
            return linux.send(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)
