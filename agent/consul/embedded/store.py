"""The embedded store: everything of a Consul that this project uses, as one plain object without I/O or a clock of its own.

Every public operation first lets time have its effect (`advance`), so a caller on virtual time sees exactly what a real
server would have done by then.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

from agent.consul.embedded.base import Kind
from agent.consul.embedded.services import Services
from agent.consul.embedded.state import Check, Entry, Event, Service, Session
from agent.consul.embedded.txn import Op, run

EVENTS = 256


class Store(Services):
    """One Consul's state. `now` gives seconds on any clock that only grows; `new_id` gives UUIDs."""

    def __init__(
        self,
        now: Callable[[], float],
        *,
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
        node: str = "embedded",
        session_ttl_min: float = 10.0,
    ) -> None:
        super().__init__(now, new_id, node, session_ttl_min)
        self.events: list[Event] = []
        self.event_index = 1

    def advance(self) -> None:
        """Whatever was due by now has happened: expired sessions and checks, ended lock-delays."""
        now = self.now()
        if not self._due or self._due[0][0] > now:
            return  # asked very often
        due = self.next_due()
        if due is not None and due <= now:
            self.expire_checks()
            self.expire_sessions()
            self.end_delays()

    def _lapses_at(self, kind: Kind, name: str, at: float) -> bool:
        if kind == "session":
            return name in self.sessions and self.sessions[name].expires == at
        if kind == "delay":
            return self.delays.get(name) == at
        check = self.checks.get(name)
        return check is not None and at in (check.expires, self.deregister_at(check))

    def transact(self, ops: list[Op]) -> list[Entry]:
        """All or nothing. Raises TxnFailed with every operation that could not be done."""
        return run(self, ops)

    def fire(self, name: str, payload: bytes) -> Event:
        self.event_index = index = self.bump()
        event = Event(self.new_id(), name, payload, index)
        self.events.append(event)
        self.saved("event", event.id, event)
        for old in self.events[:-EVENTS]:
            self.saved("event", old.id, None)
        del self.events[:-EVENTS]
        return event

    def load(self, rows: Mapping[tuple[Kind, str], Any]) -> None:
        """Take over saved rows. TTLs, check deadlines and lock-delays start again in full, as after an election."""
        now = self.now()
        self.index = rows["meta", "index"]
        for (kind, name), body in sorted(rows.items()):
            if kind == "kv":
                self.load_entry(Entry.read(body))
            elif kind == "tomb":
                self.tombs[name] = body["index"]
            elif kind == "session":
                self.sessions[name] = Session.read(body)
                self.renew_session(name)
            elif kind == "service":
                self.services[name] = Service.read(body)
            elif kind == "check":
                self.checks[name] = check = Check.read(body)
                check.expires = None if check.ttl is None else now + check.ttl
                check.critical_since = now if check.status == "critical" else None
                self.lapses("check", name, check.expires)
                self.lapses("check", name, self.deregister_at(check))
            elif kind == "delay":
                self.delays[name] = now + body["seconds"]
                self.lapses("delay", name, self.delays[name])
            elif kind == "name":
                self.names[name] = body["index"]
            elif kind == "event":
                self.events.append(Event.read(body))
        self.events.sort(key=lambda event: event.time)
        self.session_index = self.catalog_index = self.event_index = self.index
