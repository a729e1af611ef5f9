"""Keys and locks of the embedded store, with Consul's rules for indexes, sessions and lock-delay."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from dataclasses import replace

from agent.consul.embedded.base import Base
from agent.consul.embedded.state import Entry, Rejected, Session

MAX_VALUE = 512 * 1024
TOMBSTONES = 10_000


class Keys(Base):
    """The KV store."""

    def __init__(self, now: Callable[[], float], new_id: Callable[[], str], node: str) -> None:
        super().__init__(now, new_id, node)
        self.entries: dict[str, Entry] = {}
        self.sessions: dict[str, Session] = {}
        self.tombs: dict[str, int] = {}  # index at which a key went away, so that watchers of a prefix notice
        self.delays: dict[str, float] = {}  # key → when it may be locked again
        self._sorted: list[str] = []

    # --- reading ------------------------------------------------------------------------------------------------

    def below(self, prefix: str) -> Iterator[Entry]:
        """Entries whose key starts with the prefix, in order."""
        for at in range(bisect_left(self._sorted, prefix), len(self._sorted)):
            if not self._sorted[at].startswith(prefix):
                return
            yield self.entries[self._sorted[at]]

    def key_index(self, key: str) -> int:
        """The index at which this key last changed, also by going away; 1 when it never existed."""
        entry = self.entries.get(key)
        return entry.modify if entry else self.tombs.get(key, 1)

    def prefix_index(self, prefix: str) -> int:
        gone = max((index for key, index in self.tombs.items() if key.startswith(prefix)), default=1)
        return max(gone, max((entry.modify for entry in self.below(prefix)), default=1))

    # --- writing ------------------------------------------------------------------------------------------------

    def put(self, key: str, value: bytes, flags: int = 0, cas: int | None = None) -> bool:
        """Write; with `cas` only if the modify index is still that, 0 meaning that the key must not exist."""
        held = self.entries.get(key)
        if cas is not None and cas != (held.modify if held else 0):
            return False
        # As in Consul, a plain write keeps the holder but forgets how often the key was locked.
        self._write(Entry(key, value, flags, session=held.session if held else ""))
        return True

    def delete(self, key: str, cas: int | None = None) -> bool:
        held = self.entries.get(key)
        if held is None:
            return True
        if cas is not None and cas != held.modify:
            return False
        self._remove(key, self.bump())
        return True

    def delete_tree(self, prefix: str) -> None:
        gone = [entry.key for entry in self.below(prefix)]
        if gone:
            index = self.bump()
            for key in gone:
                self._remove(key, index)

    def acquire(self, key: str, value: bytes, session: str, flags: int = 0) -> bool:
        """Lock; False while another session holds the key or its lock-delay runs. Raises Rejected without the session."""
        if self.delayed(key):
            return False
        if session not in self.sessions:
            raise Rejected(500, f'invalid session "{session}"')
        held = self.entries.get(key)
        if held and held.session not in ("", session):
            return False
        lock = held.lock if held else 0
        self._write(Entry(key, value, flags, lock=lock if held and held.session else lock + 1, session=session))
        return True

    def release(self, key: str, value: bytes, session: str, flags: int = 0) -> bool:
        held = self.entries.get(key)
        if held is None or held.session != session:
            return False
        self._write(Entry(key, value, flags, lock=held.lock))
        return True

    def delayed(self, key: str) -> bool:
        """Whether the lock-delay of a session that died holding this key still runs."""
        return self.delays.get(key, 0.0) > self.now()

    def drop_locks(self, session: Session, index: int) -> None:
        """Free or delete every key the session held; what it held may not be locked before its lock-delay has passed."""
        for entry in [each for each in self.entries.values() if each.session == session.id]:
            if session.behavior == "delete":
                self._remove(entry.key, index)
            else:
                self._write(replace(entry, session=""), index)
            if session.lock_delay > 0:
                self.delays[entry.key] = self.now() + session.lock_delay
                self.lapses("delay", entry.key, self.delays[entry.key])
                self.saved("delay", entry.key, {"seconds": session.lock_delay})

    def end_delays(self) -> None:
        for key in [key for key, until in self.delays.items() if until <= self.now()]:
            del self.delays[key]
            self.saved("delay", key, None)

    def _write(self, entry: Entry, index: int | None = None) -> None:
        if len(entry.value) > MAX_VALUE:
            raise Rejected(413, f"Value of {len(entry.value)} bytes is too large, max size: {MAX_VALUE} bytes")
        held = self.entries.get(entry.key)
        entry.create, entry.modify = (held.create, held.modify) if held else (0, 0)
        if held == entry:
            return  # an equal write is not a change: it moves no index and wakes nobody
        entry.modify = self.bump() if index is None else index
        if held is None:
            entry.create = entry.modify
            insort(self._sorted, entry.key)
            if self.tombs.pop(entry.key, None) is not None:
                self.saved("tomb", entry.key, None)
        self.entries[entry.key] = entry
        self.saved("kv", entry.key, entry)

    def _remove(self, key: str, index: int) -> None:
        del self.entries[key]
        del self._sorted[bisect_left(self._sorted, key)]
        self.tombs[key] = index
        self.saved("tomb", key, {"index": index})
        self.saved("kv", key, None)
        while len(self.tombs) > TOMBSTONES:
            oldest = next(iter(self.tombs))
            del self.tombs[oldest]
            self.saved("tomb", oldest, None)

    def detach(self) -> None:
        super().detach()
        self.entries, self.tombs, self.delays = dict(self.entries), dict(self.tombs), dict(self.delays)
        self._sorted = list(self._sorted)

    def load_entry(self, entry: Entry) -> None:
        self.entries[entry.key] = entry
        insort(self._sorted, entry.key)
