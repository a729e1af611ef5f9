"""Pure: what is written on a lease's key, what is remembered of a session, and what follows from both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

from pydantic import ValidationError

from agent.consul.protocol import KeyValue
from agent.leases.failsafe import members_of
from agent.wire import LeaseFigures

# why a lease was lost
EXPIRED = "LEASE_EXPIRED"
REVOKED = "LEASE_REVOKED"
TAMPERED = "LOCK_TAMPERED"
# what one waits for
WAITING_LEASE = "WAITING_LEASE"
WAITING_LOCK_DELAY = "WAITING_LOCK_DELAY"
EPOCH_LOST = "CONSUL_EPOCH_LOST"
UNAVAILABLE = "CONSUL_UNAVAILABLE"


@dataclass(frozen=True, slots=True, order=True)
class Token:
    """A number that only grows from holder to holder of one lease: a resource refuses whoever comes with a lower one."""

    epoch: int = 0
    index: int = 0

    def __str__(self) -> str:
        return f"{self.epoch}.{self.index}"


@dataclass(frozen=True, slots=True)
class Record:
    """What a holder writes on the key: who it is, and whether nothing of it was left when it gave the lock back."""

    node: str
    session: str
    lock_index: int  # what is said here is said of this acquisition and no other
    token: Token  # of the last process that was let run
    lock_delay: float
    since: str = ""  # time of day, for people
    released_clean: bool = False
    eligible: Mapping[str, str] = field(
        default_factory=dict
    )  # failsafe: node → API of all who could run it, and no others

    def encode(self) -> bytes:
        raw = asdict(self)
        if not self.eligible:
            del raw["eligible"]
        return json.dumps(raw, indent=1).encode()


def read_record(entry: KeyValue | None) -> Record | None:
    """The record on a key, or None when there is none that makes sense."""
    return None if entry is None else _decoded(entry.value)


@lru_cache(maxsize=1024)  # the same few are read after every renewal
def _decoded(value: bytes) -> Record | None:
    try:
        raw: dict[str, Any] = json.loads(value)
        token = Token(int(raw["token"]["epoch"]), int(raw["token"]["index"]))
        return Record(
            node=str(raw["node"]),
            session=str(raw["session"]),
            lock_index=int(raw["lock_index"]),
            token=token,
            lock_delay=float(raw["lock_delay"]),
            since=str(raw["since"]),
            released_clean=raw["released_clean"] is True,
            eligible=members_of(raw.get("eligible", {})),
        )
    except (ValueError, TypeError, KeyError):
        return None


def is_clean(entry: KeyValue | None) -> bool:
    """Whether the last holder proved that nothing of it was left, and nobody has held the lock since."""
    record = read_record(entry)
    if entry is None or record is None or entry.session:
        return False
    return record.released_clean and 0 < record.lock_index == entry.lock_index


def wait_after(entry: KeyValue | None, figures: LeaseFigures) -> float:
    """Seconds from seeing a lock free until its last holder is surely dead: its own lock-delay, if that was longer."""
    record = read_record(entry)
    return max(figures.lock_delay, record.lock_delay if record else 0.0)


def next_token(known: Token, epoch: int, entry: KeyValue) -> Token:
    """The token of a new holder, whose lock this entry is: above the highest that is known.

    How often a lock was taken does not tell: that counts anew for a key that was written over or deleted, and again for one that
    came back with an old snapshot. The index of Consul's log goes on in all of these; only lost data set it back, and then there
    is a new epoch.
    """
    now = Token(epoch, entry.modify_index)
    return now if known < now else Token(known.epoch, known.index + 1)


@dataclass(frozen=True, slots=True)
class Remembered:
    """The lease session in the ledger, so that a restarted agent still holds its leases.

    `created` and `modified` are indexes of the epoch key: they tell a session that was revoked from a Consul that forgot it.
    """

    id: str
    boot: str
    figures: LeaseFigures
    created: int = 0
    modified: int = 0

    def encode(self) -> str:
        return json.dumps({**asdict(self), "figures": self.figures.model_dump()})


def read_remembered(text: str) -> Remembered | None:
    """The session of an earlier life, or None when there is none."""
    if not text:
        return None
    try:
        raw: dict[str, Any] = json.loads(text)
        return Remembered(
            id=str(raw["id"]),
            boot=str(raw["boot"]),
            figures=LeaseFigures.model_validate(raw["figures"]),
            created=int(raw["created"]),
            modified=int(raw["modified"]),
        )
    except (ValueError, TypeError, KeyError, ValidationError):
        return None


def forgotten(held: Remembered, epoch: KeyValue | None) -> bool:
    """Whether Consul lost its data (wiped, or an older snapshot) since the session was made, rather than the session its life."""
    if epoch is None or held.created == 0:
        return True
    return epoch.create_index != held.created or epoch.modify_index < held.modified
