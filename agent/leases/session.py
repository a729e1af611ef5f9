"""The one Consul session of a node's leases: made, renewed, and never believed to live longer than we can know."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import structlog

from agent import keys
from agent.clock import Clock
from agent.consul.protocol import Consul, KeyValue, SessionGone
from agent.errors import Refused, TdieError
from agent.keeper.protocol import Keeper
from agent.leases.values import EPOCH_LOST, EXPIRED, REVOKED, Remembered, forgotten
from agent.ledger import Ledger
from agent.wire import LeaseFigures

log = structlog.get_logger("leases")

NOT_GIVEN = "LEASE_REFUSED"  # Consul gives no session with these figures (`session_ttl_min` is 10s unless it says so)
AGAIN = 1.0  # seconds between tries to renew: an election is over sooner than a lease


class Session:
    """Renewed as long as it is needed. `moved` is told of every renewal, and of every end.

    It is good until (time before the last renewal that succeeded was sent) + T, on the clock that goes on during suspend: no
    answer from Consul is no reason to believe in it any longer.
    """

    def __init__(
        self,
        cluster: str,
        node: str,
        *,
        consul: Consul,
        keeper: Keeper,
        clock: Clock,
        ledger: Ledger,
        boot_id: str,
        figures: Callable[[], LeaseFigures],
        moved: Callable[[], None],
        problem: Callable[[str, str], None],
    ) -> None:
        self._cluster, self._node, self._boot = cluster, node, boot_id
        self._consul, self._keeper, self._clock, self._ledger = consul, keeper, clock, ledger
        self._figures, self._moved, self._problem = figures, moved, problem
        self._held: Remembered | None = None
        self._needed = asyncio.Event()
        self._lapsed = True
        self._seen = 0.0  # when we last looked at the clock
        self.deadline = 0.0
        self.renewals = 0  # of the present session, its creation included
        self.generation = 0  # sessions that ended
        self.breaks = 0  # … and those after which somebody else may have held what Consul says is ours (again)
        self.lapses = 0  # times at which hosts had to be ended because nothing was known
        self.silent = False  # Consul did not answer the last time
        self.cause = ""  # why the last session ended: REVOKED or EPOCH_LOST
        self.pause = 0.0  # how long this process did not run when the last lapse was noticed
        self.barrier = 0.0  # nobody who holds nothing takes a lock before

    @property
    def id(self) -> str:
        """The session, once Consul has said that it lives."""
        return self._held.id if self._held is not None and self.renewals else ""

    @property
    def figures(self) -> LeaseFigures:
        """The figures the session was made with; a change of them counts from the next session on."""
        return self._held.figures if self._held is not None else self._figures()

    @property
    def usable(self) -> bool:
        """Whether hosts may start and go on under it."""
        return bool(self.id) and self._clock.now() < self._end()

    def _end(self) -> float:
        figures = self.figures
        return self.deadline - figures.fence_grace - figures.kill_slack

    def remember(self, held: Remembered | None) -> None:
        """The session of this agent's last life; whether it still lives is seen at the first renewal."""
        self._held = held

    @property
    def remembered(self) -> bool:
        """Whether there is one, alive or not."""
        return self._held is not None

    def need(self, needed: bool) -> None:
        """Whether anything here is leased, or may be."""
        if needed:
            self._needed.set()
        else:
            self._needed.clear()

    def saw_epoch(self, epoch: KeyValue) -> None:
        """The epoch key as it is now: by it a wiped Consul is known later."""
        held = self._held
        if held is not None and (held.created == 0 or held.created == epoch.create_index):
            modified = max(held.modified, epoch.modify_index)
            self._held = replace(held, created=epoch.create_index, modified=modified)

    async def run(self) -> None:
        """Keep the session for ever, as long as somebody needs it."""
        while True:
            if not self._needed.is_set():
                await self.leave()
            await self._needed.wait()
            pause = await self._turn()
            await asyncio.sleep(max(0.0, min(pause, self._until_lapse())))

    async def leave(self) -> None:
        """The session is over, if there is one; what it holds is free after its lock-delay."""
        held, self._held, self.renewals, self._lapsed = self._held, None, 0, True
        if held is None:
            return
        self.generation += 1
        self.cause = REVOKED
        try:
            async with asyncio.timeout(held.figures.http_timeout):
                await self._consul.session_destroy(held.id)
            await self._ledger.save_leases("")
        except (TdieError, TimeoutError) as error:
            log.warning("the lease session was not ended, it will end by itself", error=str(error))

    async def _turn(self) -> float:
        """One renewal; seconds until the next."""
        self._note_lapse()  # before anything is asked: what was missed while nothing ran here counts
        figures = self.figures
        try:
            async with asyncio.timeout(figures.http_timeout):
                await (self._renew() if self._held is not None else self._begin())
        except SessionGone:
            return await self._gone()
        except (TdieError, TimeoutError) as error:
            self._trouble(error)
            return min(AGAIN, figures.renew_every)
        self.silent = False
        self._problem(NOT_GIVEN, "")
        await self._extend()
        self._moved()
        return figures.renew_every

    async def _begin(self) -> None:
        """A new session, in the ledger before its first use."""
        figures = self._figures()
        epoch = await self._consul.get(keys.epoch(self._cluster))
        sent = self._clock.now()
        made = await self._consul.session_create(
            f"tdie leases of {self._node}", ttl=figures.ttl, lock_delay=figures.lock_delay
        )
        created, modified = (epoch.create_index, epoch.modify_index) if epoch else (0, 0)
        held = Remembered(made, self._boot, figures, created, modified)
        try:
            await self._ledger.save_leases(held.encode())
        except TdieError:
            await self._consul.session_destroy(made)
            raise
        self._held, self.renewals = held, 1
        self.deadline, self._lapsed = sent + figures.ttl, False
        log.info("lease session", session=made, ttl=figures.ttl, lock_delay=figures.lock_delay)

    async def _renew(self) -> None:
        assert self._held is not None
        if self._held.boot != self._boot:  # nothing of that life runs: its session ends before a new one begins
            await self._consul.session_destroy(self._held.id)
            raise SessionGone("the machine was restarted")
        sent = self._clock.now()
        await self._consul.session_renew(self._held.id)
        self.renewals += 1
        if sent >= self.deadline:  # an old snapshot of Consul may have brought the session back
            self.breaks += 1
        self.deadline, self._lapsed = max(self.deadline, sent + self._held.figures.ttl), False
        if sent >= self.barrier:
            self._problem(EPOCH_LOST, "")

    async def _extend(self) -> None:
        """The keeper lets leased hosts live until our deadline; if it is away, they are gone or will be."""
        try:
            async with asyncio.timeout(self.figures.http_timeout):
                await self._keeper.extend(self.deadline)
        except (TdieError, TimeoutError) as error:
            log.warning("the keeper was not told that leases hold", error=str(error))

    async def _gone(self) -> float:
        """Consul does not know the session: it was revoked, or Consul forgot everything. That makes a difference."""
        assert self._held is not None
        try:
            async with asyncio.timeout(self.figures.http_timeout):
                epoch = await self._consul.get(keys.epoch(self._cluster))
        except (TdieError, TimeoutError) as error:
            self._trouble(error)
            return min(AGAIN, self.figures.renew_every)
        lost = forgotten(self._held, epoch)
        self.cause = EPOCH_LOST if lost else REVOKED
        if lost:
            figures = self._held.figures
            self.barrier = self._clock.now() + 2 * figures.ttl + figures.lock_delay
            self._problem(EPOCH_LOST, "Consul lost its data: who held a lease takes it again, others wait")
        log.warning("lease session is gone", session=self._held.id, cause=self.cause)
        self._held, self.renewals = None, 0
        self.generation += 1
        self._moved()
        return 0.0

    def _note_lapse(self) -> None:
        now = self._clock.now()
        before, self._seen = self._seen, now
        if not self._lapsed and now >= self._end():
            self._lapsed = True
            self.lapses += 1
            self.pause = max(0.0, now - before)
            log.warning("leases were not renewed in time", code=EXPIRED, pause=round(self.pause, 1))
            self._moved()

    def _until_lapse(self) -> float:
        return AGAIN if self._lapsed else max(0.0, self._end() - self._clock.now())

    def _trouble(self, error: BaseException) -> None:
        if not self.silent:
            self.silent = True
            self._moved()
        if isinstance(error, Refused):  # neither away nor against us: these figures are not for this Consul
            self._problem(NOT_GIVEN, error.detail)
        log.debug("lease session not renewed", error=str(error))
