"""The lease of one replica on this node, from wanting it to giving it back; decided by what Consul answers now."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import structlog

from agent.consul.protocol import KeyValue
from agent.errors import TdieError
from agent.leases.acquiring import AGAIN, Acquiring, Elsewhere, Held, Hindrance, sight_of
from agent.leases.agreement import Agreement
from agent.leases.key import LeaseKey
from agent.leases.values import EPOCH_LOST, EXPIRED, REVOKED, TAMPERED, UNAVAILABLE, Token, read_record
from agent.leases.world import World
from agent.wire import KEPT_BY_AGREEMENT, LeaseStatus

log = structlog.get_logger("leases")

PRESS = 0.5  # seconds between words to a keeper that has not ended a host yet


class Tender:
    """Runs until its replica needs no lease here and none is held."""

    def __init__(self, replica: str, world: World, *, left_over: bool = False) -> None:
        self._replica, self._world = replica, world
        self._key = LeaseKey(replica, world)
        self._left_over = left_over  # our session holds the lock since an earlier life
        self._held: Held | None = None
        self._lost = ""
        self._agreement = Agreement(replica, world)
        self._agreed = False  # as it was told
        self._acquiring = Acquiring(replica, world, self._key, self._agreement)
        self._status = LeaseStatus(state="waiting", code=UNAVAILABLE)
        self.moved = asyncio.Event()

    # ------------------------------------------------------------------------------------------- for others

    @property
    def token(self) -> Token | None:
        """What a process may carry now; None while none may start."""
        held, session = self._held, self._world.session
        if held is None or not session.usable or held.generation != session.generation:
            return None
        return held.token if (held.lapses, held.breaks) == (session.lapses, session.breaks) else None

    @property
    def lost(self) -> str:
        """Why it was lost last; empty once it is held again."""
        return EXPIRED if self._held is not None and self.token is None and not self._agreement.holds() else self._lost

    @property
    def busy(self) -> bool:
        """Whether something may start here, or may at any moment: then this node agrees to nobody else.

        A lease or lock that ran out is none until Consul says that it is still ours, and then a promise counts first.
        """
        return self._acquiring.near or self.token is not None

    @property
    def trying(self) -> bool:
        """Whether it is not known yet who gets the lock."""
        return self._acquiring.trying

    @property
    def refused(self) -> bool:
        """Whether Consul does not give the lock yet, although it is nobody's."""
        return self._acquiring.refused

    def status(self) -> LeaseStatus:
        """For the report: nothing in it changes by itself while all is well."""
        token, row = self.token, self._world.row(self._replica)
        if token is not None:
            return LeaseStatus(state="held", token=str(token))
        if self._world.runs_leased(self._replica):
            if not self._lost and self._agreement.holds():
                return LeaseStatus(state="held", code=KEPT_BY_AGREEMENT, holder=", ".join(self._agreement.members))
            code = self.lost or (row.fenced if row is not None else "")
            return LeaseStatus(state="ending" if code else "held", code=code or UNAVAILABLE)
        if not self._world.session.usable:  # what was started before it needed a lease may run still
            gone = self._world.down(self._replica)
            return LeaseStatus(state="fenced" if gone else "waiting", code=self.lost or UNAVAILABLE)
        return self._status

    # ------------------------------------------------------------------------------------------- its life

    async def run(self) -> None:
        """Get the lease when it is wanted, keep it while something may run, give it back when nothing is left."""
        world = self._world
        while self._concerned():
            self.moved.clear()
            try:
                if not world.known():
                    await self._wait(AGAIN)
                elif self._held is not None:
                    await self._keep(self._held)
                elif world.runs_leased(self._replica):
                    await self._take_up()
                elif world.wanted(self._replica):
                    await self._get()
                else:
                    await self._drop()
            except (TdieError, TimeoutError) as error:
                log.debug("lease not looked at", replica=self._replica, error=str(error))
                await self._wait(min(AGAIN, world.session.figures.renew_every))

    def _concerned(self) -> bool:
        world = self._world
        holds = self._held is not None or self._acquiring.locked or self._left_over
        return holds or world.wanted(self._replica) or world.runs_leased(self._replica)

    # ------------------------------------------------------------------------------------------- getting it

    async def _get(self) -> None:
        """One step nearer to the lease, or a wait for what stands in the way."""
        match await self._acquiring.step():
            case Held() as held:
                self._hold(held)
            case Elsewhere(entry, status):
                self._say(status)
                await self._watch(entry)
            case Hindrance(status, seconds):
                if status is not None:
                    self._say(status)
                if seconds is not None:
                    await self._wait(seconds)

    async def _watch(self, entry: KeyValue) -> None:
        """Somebody else has it: wait until that changes."""
        watch = asyncio.ensure_future(self._key.moved(entry))
        moved = asyncio.ensure_future(self._wanted_no_more())
        try:
            await asyncio.wait({watch, moved}, return_when=asyncio.FIRST_COMPLETED)
            if watch.done():
                watch.result()
        finally:
            watch.cancel()
            moved.cancel()
            await asyncio.gather(watch, moved, return_exceptions=True)

    async def _wanted_no_more(self) -> None:
        while self._world.wanted(self._replica) and self._world.session.usable:
            self.moved.clear()
            await self.moved.wait()

    # ------------------------------------------------------------------------------------------- taking it up again

    async def _take_up(self) -> None:
        """A process runs under a lease that this life of the agent, or this session, does not hold yet: it must, or that ends."""
        world, session = self._world, self._world.session
        row = world.row(self._replica)
        if row is None or row.order.lease is None:  # not known for the moment
            await self._wait(AGAIN)
            return
        if not session.id:
            if session.cause == REVOKED:
                await self._end(REVOKED)
            elif not session.remembered and session.cause != EPOCH_LOST:
                await self._end(REVOKED)  # the ledger knows of no session: nobody renews the one it ran under
            else:
                self._agreement.recall(Token(row.order.lease.epoch, row.order.lease.index))
                await self._go_on(AGAIN)
            return
        entry = await self._key.read()
        record, token = read_record(entry), Token(row.order.lease.epoch, row.order.lease.index)
        if entry is not None and entry.session == session.id:
            if record is not None and (record.token, record.lock_index) == (token, entry.lock_index):
                self._hold(Held(entry.lock_index, token, *sight_of(session)))
            else:
                await self._end(TAMPERED)
        elif session.cause == EPOCH_LOST and (entry is None or not entry.session):
            index = (entry.lock_index if entry else 0) + 1
            self._agreement.recall(token)
            if not await self._key.acquire(index, token, self._agreement.members):
                await self._wait(AGAIN * world.uniform(0.8, 1.2))
        else:
            await self._end(session.cause or TAMPERED)

    # ------------------------------------------------------------------------------------------- keeping it

    async def _keep(self, held: Held) -> None:
        """Held: seen to be ours after every renewal, given back when nothing needs it any more."""
        world, session = self._world, self._world.session
        runs = world.runs_leased(self._replica)
        if held.generation != session.generation:
            self._held = None
            if session.cause == REVOKED or not runs:
                await self._end(session.cause)
            return
        if held.breaks != session.breaks:
            if not (runs and world.clock.now() < self._agreement.until):
                await self._end(EXPIRED)
                return
            held = self._held = replace(held, breaks=session.breaks)  # all agreed: nobody else can have had it
        if not world.wanted(self._replica) and not runs:
            if session.id:
                await self._release(held, clean=world.down(self._replica))
                return
        elif session.silent and world.failsafe(self._replica):
            await self._go_on(None)  # there is nothing to read
            return
        elif session.id and (held.renewal, held.lapses) != (session.renewals, session.lapses):
            now = (session.renewals, session.lapses)
            entry = await self._key.read()
            if entry is None or not self._is_ours(entry, held):
                if await self._key.session_is_gone() or held.generation != session.generation:
                    await self._wait(AGAIN)  # why, and what follows, is the session's to find out at its next renewal
                else:
                    await self._end(TAMPERED)
                return
            if now[1] != held.lapses and (promised := self._promised()):
                await self._wait(promised)
                return
            self._held = replace(held, renewal=now[0], lapses=now[1])
            if now[1] != held.lapses:
                self._world.changed(self._replica)
            await self._note_members(entry, held)
            return
        await self._go_on(None)

    def _promised(self) -> float:
        """Seconds for which this node has promised another one not to start it."""
        return max(0.0, self._world.promises.book.until(self._replica) - self._world.clock.now())

    async def _note_members(self, entry: KeyValue, held: Held) -> None:
        """The record names every node that could run it next; each of them is asked before this host outlives its session."""
        world, record = self._world, read_record(entry)
        written = record.eligible if record is not None else {}
        members = await world.members() if world.failsafe(self._replica) else {}
        if members == written:
            await self._agreement.read(held.token, members)
            return
        await self._agreement.before_writing(members)
        if await self._key.acquire(held.index, held.token, members):
            await self._agreement.written(held.token, members)

    async def _go_on(self, pause: float | None) -> None:
        """Wait for something to happen; while Consul is silent the host may go on if all others agree."""
        world = self._world
        if not world.failsafe(self._replica):
            await self._wait(pause)
            return
        row = world.row(self._replica)
        runs = row is not None and row.pid is not None and not row.fenced and world.runs_leased(self._replica)
        if runs and (code := await self._agreement.cycle()):
            await self._end(code)
            return
        if (agreed := self._agreement.holds()) != self._agreed:
            self._agreed = agreed
            world.changed(self._replica)
        await self._wait(AGAIN if world.session.silent or agreed else pause)

    def _is_ours(self, entry: KeyValue, held: Held) -> bool:
        """Whether the lock is as we left it. One that was written over may still name our session and count the same."""
        record = read_record(entry)
        same = (entry.session, entry.lock_index) == (self._world.session.id, held.index)
        return same and record is not None and record.token == held.token

    async def _release(self, held: Held, *, clean: bool) -> None:
        await self._key.release(held.index, held.token, self._agreement.members, clean=clean)
        log.info("lease given back", replica=self._replica, clean=clean)
        self._held, self._left_over = None, False
        self._acquiring.over()
        self._world.changed(self._replica)
        await self._agreement.over()

    async def _drop(self) -> None:
        """Not wanted and not held, but perhaps locked by our session: free it, without a word about what ran there."""
        session = self._world.session
        if session.id:
            entry = await self._key.read()
            if entry is not None and entry.session == session.id:
                record = read_record(entry)
                token, eligible = (record.token, record.eligible) if record else (Token(), {})
                await self._key.release(entry.lock_index, token, eligible)
        self._left_over = False
        self._acquiring.over()

    async def release(self) -> None:
        """The lease is given back if it is held: for an agent that has stopped everything."""
        if self._held is not None and self._world.session.id:
            await self._release(self._held, clean=True)

    # ------------------------------------------------------------------------------------------- losing it

    async def _end(self, code: str) -> None:
        """The lease is lost: what runs under it ends, whatever it takes."""
        world = self._world
        self._held, self._lost = None, code
        self._acquiring.over()
        log.warning("lease lost", replica=self._replica, code=code)
        world.changed(self._replica)
        while world.runs_leased(self._replica):
            self.moved.clear()
            try:
                await world.keeper.fence(self._replica, code)
            except TdieError as error:
                log.warning("the keeper was not told to end a host", replica=self._replica, error=str(error))
            await self._wait(PRESS)
        world.changed(self._replica)
        await self._agreement.over()

    # ------------------------------------------------------------------------------------------- what is said, and waits

    def _hold(self, held: Held) -> None:
        self._held, self._lost = held, ""
        self._acquiring.over()
        log.info("lease held", replica=self._replica, number=str(held.token))
        self._world.changed(self._replica)

    def _say(self, status: LeaseStatus) -> None:
        if status != self._status:
            self._status = status
            self._world.changed(self._replica)

    async def _say_and_wait(self, status: LeaseStatus, seconds: float) -> None:
        self._say(status)
        await self._wait(seconds)

    async def _wait(self, seconds: float | None) -> None:
        """Until something here has moved, at the longest so long."""
        try:
            async with asyncio.timeout(None if seconds is None else max(0.0, seconds)):
                await self.moved.wait()
        except TimeoutError:
            return
