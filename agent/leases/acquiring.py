"""The way of one lock to this node: free, ours, its last holder surely dead, a token written. Each step asks Consul anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from agent.consul.protocol import KeyValue
from agent.leases.agreement import Agreement
from agent.leases.failsafe import PROMISED, lacking, may_acquire
from agent.leases.key import LeaseKey
from agent.leases.session import Session
from agent.leases.values import (
    EPOCH_LOST,
    UNAVAILABLE,
    WAITING_LEASE,
    WAITING_LOCK_DELAY,
    Token,
    is_clean,
    next_token,
    read_record,
    wait_after,
)
from agent.leases.world import World
from agent.wire import NOT_AGREED, NOT_ELIGIBLE, LeaseStatus

AGAIN = 1.0  # seconds between looks at what stands in the way
PER_SECOND = 5  # locks refused to this node are asked for, all together; of so few, each every `AGAIN`


@dataclass(frozen=True, slots=True)
class Held:
    """A lease, as of the last time that Consul was seen to say that it is ours."""

    index: int  # LockIndex of the acquisition
    token: Token
    generation: int  # of the session
    renewal: int  # at which it was last seen to be ours
    lapses: int  # … and how many lapses there had been
    breaks: int  # … and how many breaks


@dataclass(frozen=True, slots=True)
class Hindrance:
    """What stands in the way, and how many seconds to wait for it; None: go on at once."""

    status: LeaseStatus | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The lock is another session's."""

    entry: KeyValue
    status: LeaseStatus


@dataclass(frozen=True, slots=True)
class _Lock:
    """The lock as this life took it: since when it was free before, and when something may start under it."""

    index: int
    ready_at: float
    taken: bool  # by us, a moment before; else it was found to be ours, from whenever
    blank: bool  # nothing tells who may run it by agreement


def sight_of(session: Session) -> tuple[int, int, int, int]:
    """What a lease that is held from now on has seen of its session, in the order of Held."""
    return (session.generation, session.renewals, session.lapses, session.breaks)


class Acquiring:
    """Remembers between steps what Consul does not: since when the lock is free, and what we did to it without an answer."""

    def __init__(self, replica: str, world: World, key: LeaseKey, agreement: Agreement) -> None:
        self._replica, self._world, self._key, self._agreement = replica, world, key, agreement
        self.near = False
        """The lock is ours, and a token may come at any moment."""
        self.trying = False
        """Consul is being asked for the lock."""
        self._lock: _Lock | None = None
        self._tried: tuple[KeyValue | None, bool, float] | None = None  # what we took the lock of, when no answer came
        self._try_at = 0.0  # it was refused, and is not tried again before
        self._sight: tuple[int, int] | None = None  # the lock as we first saw it free …
        self._free_since = 0.0  # … and when
        # Who may take the lock by what was read there last, perhaps before Consul was wiped.
        self._eligible: Mapping[str, str] = {}

    @property
    def refused(self) -> bool:
        """The lock is nobody's, Consul does not give it yet, and it is left alone for the moment."""
        return self._try_at > self._world.clock.now()

    @property
    def locked(self) -> bool:
        """The lock is ours, as far as is known, and no lease has come of it yet."""
        return self._lock is not None

    def over(self) -> None:
        """A lease came of it, or nothing: the next way begins at its beginning."""
        self._lock = self._sight = None
        self.near = False

    async def step(self) -> Held | Hindrance | Elsewhere | None:
        """The lease, what stands in its way, or None after a step that nothing need be said of.

        Raises what Consul cannot do, TimeoutError among it: the step may have happened.
        """
        world, session = self._world, self._world.session
        if not session.usable:
            self.near = False  # if the lock is ours in the end, what was promised in the meantime counts first
            return Hindrance(LeaseStatus(state="waiting", code=UNAVAILABLE), AGAIN)
        if (early := self._try_at - world.clock.now()) > 0:  # whatever has moved here
            return Hindrance(None, early)
        entry = await self._key.read()
        seen = world.clock.now()
        record = read_record(entry)
        if record is not None:
            self._eligible = {} if is_clean(entry) else record.eligible
        if entry is not None and entry.session and entry.session != session.id:
            self._tried = None
            self.over()
            holder = record.node if record is not None and record.session == entry.session else ""
            return Elsewhere(entry, LeaseStatus(state="waiting", code=WAITING_LEASE, holder=holder))
        if entry is not None and entry.session == session.id:
            return await self._get_ready(entry, seen)
        self._lock = None
        return await self._take(entry, seen)

    # ------------------------------------------------------------------------------------------- it is free

    async def _take(self, entry: KeyValue | None, seen: float) -> Hindrance | None:
        """Take it. That no answer names a holder and it is refused all the same is Consul's lock-delay, no error."""
        world, session = self._world, self._world.session
        self._note_free(entry, seen)
        ready_at = self._free_since + wait_after(entry, session.figures)
        if seen < session.barrier:
            status = LeaseStatus(state="waiting", code=EPOCH_LOST, until=session.barrier)
            return Hindrance(status, session.barrier - seen)
        before, clean = read_record(entry), is_clean(entry)
        self.near = False
        if not may_acquire(self._eligible, world.node):
            others = ", ".join(sorted(self._eligible))
            return Hindrance(LeaseStatus(state="waiting", code=NOT_ELIGIBLE, holder=others), AGAIN)
        if seen < (until := world.promises.book.until(self._replica)):
            return Hindrance(LeaseStatus(state="waiting", code=PROMISED, until=until), until - seen)
        index = (entry.lock_index if entry else 0) + 1
        token = before.token if before else Token()
        self._tried, self.trying = (entry, clean, ready_at), True
        try:
            taken = await self._key.acquire(index, token, self._eligible)
        finally:
            self.trying = False
        if taken:
            return None
        self._tried = None
        self._try_at = self._again(world.clock.now(), ready_at)
        return Hindrance(LeaseStatus(state="waiting", code=WAITING_LOCK_DELAY, until=ready_at), None)

    def _again(self, now: float, ready_at: float) -> float:
        """When it is asked for again.

        A node whose session ended with many leases waits for all of them at the same time, and may be one of many such nodes.
        Nothing is lost: nothing starts before `ready_at`, and by then Consul gives it.
        """
        jitter = self._world.uniform(0.8, 1.2)
        spread = (self._world.refused() + 1) / PER_SECOND
        return max(now + AGAIN * jitter, min(now + spread * jitter, ready_at))

    def _note_free(self, entry: KeyValue | None, seen: float) -> None:
        sight = (entry.lock_index, entry.modify_index) if entry else (0, 0)
        if sight != self._sight:
            self._sight, self._free_since = sight, seen

    # ------------------------------------------------------------------------------------------- it is ours

    async def _get_ready(self, entry: KeyValue, seen: float) -> Held | Hindrance | None:
        """Wait until its last holder is surely dead, then write the token that a process gets."""
        world, session = self._world, self._world.session
        self.near = True
        if self._lock is None or self._lock.index != entry.lock_index:
            self._lock = self._new_lock(entry, seen)
        until = max(self._lock.ready_at, world.promises.book.until(self._replica))
        if seen < until:
            return Hindrance(LeaseStatus(state="waiting", code=WAITING_LOCK_DELAY, until=until), until - seen)
        epoch = await self._key.epoch()
        # Wiped, and no leader has made a new one, or only one that has not heard yet how far we were: a token could be lower than
        # one that was given.
        if epoch is None or int(epoch.value) < world.epoch():
            return Hindrance(LeaseStatus(state="waiting", code=EPOCH_LOST), AGAIN)
        session.saw_epoch(epoch)
        if not self._lock.taken:  # written anew, it has a place in Consul's log that is later than that of any token
            before = read_record(entry)
            token, eligible = (before.token, before.eligible) if before else (Token(), {})
            if await self._key.acquire(entry.lock_index, token, eligible):
                self._lock = replace(self._lock, taken=True)
            return None
        if self._lock.blank and world.failsafe(self._replica) and (missing := await self._silent()):
            return Hindrance(LeaseStatus(state="waiting", code=NOT_AGREED, holder=", ".join(missing)), AGAIN)
        token = next_token(self._last_token(entry), int(epoch.value), entry)
        seen_at = sight_of(session)
        members = await world.members() if world.failsafe(self._replica) else {}
        held = None
        if await self._key.acquire(entry.lock_index, token, members):
            await self._agreement.written(token, members)
            held = Held(entry.lock_index, token, *seen_at)
        self._lock = None
        return held

    async def _silent(self) -> tuple[str, ...]:
        """Nobody knows who ran it last (Consul lost it, or somebody wrote over it): the nodes whose word is missing. Who may run on
        by agreement has the word of all whom it asks, so one of those that are well knows."""
        return lacking(await self._agreement.ask(await self._world.passing()))

    def _new_lock(self, entry: KeyValue, seen: float) -> _Lock:
        """What we took a moment ago, or something of ours that we cannot account for: the latter waits as if just freed."""
        tried, self._tried = self._tried, None
        if tried is not None:
            before, clean, ready_at = tried
            if entry.lock_index == (before.lock_index if before else 0) + 1:
                blank = not (clean or self._eligible)
                return _Lock(entry.lock_index, seen if clean else ready_at, taken=True, blank=blank)
        ready_at = seen + wait_after(entry, self._world.session.figures)
        return _Lock(entry.lock_index, ready_at, taken=False, blank=not self._eligible)

    def _last_token(self, entry: KeyValue) -> Token:
        """The highest that is known here: by the key, or of the last process of this replica, which a Consul that lost its data
        knows nothing of."""
        record, row = read_record(entry), self._world.row(self._replica)
        lease = row.order.lease if row is not None else None
        ours = Token() if lease is None else Token(lease.epoch, lease.index)
        return ours if record is None else max(record.token, ours)
