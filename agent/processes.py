"""Which processes of this machine are ours: what is recorded, what the keeper tells, and what is really there.

A process is known by pid, start time and boot: only one that this agent has recorded so is ever signalled.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from agent.keeper.protocol import HostRow
from agent.steps import is_by_hand
from agent.wire import ReplicaState

T = TypeVar("T")

_CHANGING = (ReplicaState.STARTING, ReplicaState.STOPPING)


@dataclass(frozen=True, slots=True, order=True)
class Identity:
    """One process, and no later one with the same pid."""

    pid: int
    start_time: int  # field 22 of /proc/PID/stat
    boot_id: str


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """A host's process as it was last heard of."""

    identity: Identity
    replica: str
    package: str
    version: str
    owner: Literal["git", "manual"]
    state: str
    port: int
    started_at: str


@dataclass(frozen=True, slots=True)
class Seen:
    """A living process that carries our keeper's marker."""

    identity: Identity
    replica: str
    launch: str  # which start of a host it belongs to


@dataclass(frozen=True, slots=True)
class Zombie:
    """An ended process that its parent, one of ours, does not take note of."""

    pid: int
    parent: int


@dataclass(frozen=True, slots=True)
class Look:
    """What is there now."""

    living: tuple[Seen, ...] = ()
    zombies: tuple[Zombie, ...] = ()
    alive: frozenset[Identity] = frozenset()  # of those that were asked for, marked or not


@dataclass(frozen=True, slots=True)
class Findings:
    """What does not fit together."""

    gone: tuple[ProcessRecord, ...] = ()  # recorded, and not there any more
    orphans: tuple[Seen, ...] = ()  # ours by their marker, and nobody looks after them
    zombies: tuple[tuple[Zombie, str], ...] = ()  # with the replica whose process leaves them
    missing: tuple[str, ...] = ()  # replicas whose process the keeper tells, and that is not there


class Processes(Protocol):
    """The processes of one machine, and the file that remembers them. Raises Waiting (STORE_WRITE) for the file."""

    async def recorded(self) -> tuple[ProcessRecord, ...]: ...

    async def record(self, new: Iterable[ProcessRecord], gone: Iterable[Identity]) -> None:
        """These are recorded, and those are forgotten."""
        ...

    async def look(self, asked: Collection[Identity]) -> Look:
        """What carries our keeper's marker now, what it leaves unreaped, and which of those asked for are alive."""
        ...

    async def kill(self, identity: Identity) -> bool:
        """SIGKILL to exactly this process; False when it is gone, or its pid is another's now."""
        ...


def records(rows: Iterable[HostRow], boot_id: str) -> dict[Identity, ProcessRecord]:
    """What there is to record of the keeper's rows."""
    found = {}
    for row in rows:
        if row.pid is None or row.start_time is None:
            continue
        identity = Identity(row.pid, row.start_time, boot_id)
        found[identity] = ProcessRecord(
            identity=identity,
            replica=row.replica,
            package=row.order.component.name,
            version=row.order.component.version,
            owner="manual" if is_by_hand(row.replica) else "git",
            state=row.state,
            port=row.order.port,
            started_at=row.started_at,
        )
    return found


def compare(
    recorded: Mapping[Identity, ProcessRecord], rows: Mapping[str, HostRow], look: Look, boot_id: str
) -> Findings:
    """What does not fit together, at this moment: a start or stop under way may look so too, for an instant."""
    told = {Identity(row.pid, row.start_time, boot_id): row for row in rows.values() if row.pid and row.start_time}
    living = {seen.identity: seen for seen in look.living}
    hidden = {row.replica for identity, row in told.items() if identity not in living}  # they wrote over their marker
    supervised = {seen.launch for identity, seen in living.items() if identity in told}
    replica_of = {seen.identity.pid: seen.replica for seen in look.living}
    return Findings(
        gone=tuple(
            record for identity, record in recorded.items() if identity not in told and identity not in look.alive
        ),
        orphans=tuple(
            seen
            for seen in look.living
            if seen.launch not in supervised and seen.replica not in hidden and not _changing(rows.get(seen.replica))
        ),
        zombies=tuple((zombie, replica_of[zombie.parent]) for zombie in look.zombies if zombie.parent in replica_of),
        missing=tuple(
            row.replica for identity, row in told.items() if identity not in look.alive and not _changing(row)
        ),
    )


def lasting(now: Findings, before: Findings) -> Findings:
    """What was found twice: nothing that was only under way."""
    return Findings(
        gone=now.gone,
        orphans=_both(now.orphans, before.orphans),
        zombies=_both(now.zombies, before.zombies),
        missing=_both(now.missing, before.missing),
    )


def _both(now: tuple[T, ...], before: tuple[T, ...]) -> tuple[T, ...]:
    known = frozenset(before)
    return tuple(item for item in now if item in known)


def _changing(row: HostRow | None) -> bool:
    return row is not None and (row.pid is None or row.state in _CHANGING)
