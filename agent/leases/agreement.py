"""One leased replica that runs on while Consul is away, as long as every node that could run it agrees."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from agent.errors import TdieError
from agent.leases.failsafe import REFUSED, Answer, Kept, lacking, verdict
from agent.leases.peers import Ask
from agent.leases.values import Token
from agent.leases.world import World

log = structlog.get_logger("leases")

AGAIN = 1.0  # seconds after a cycle without all answers


class Agreement:
    """Who must agree, and until when they did."""

    def __init__(self, replica: str, world: World) -> None:
        self._replica, self._world = replica, world
        self._token = Token()
        self._next = 0.0
        self._missing: tuple[str, ...] | None = None  # who did not agree in the last cycle; None: nobody is being asked
        self.members: Mapping[str, str] = {}  # node → API of all that may take the lock after us; empty: unknown
        self.until = 0.0

    def holds(self) -> bool:
        """Whether the host may go on by agreement."""
        figures = self._world.session.figures
        return self._world.clock.now() < self.until - figures.fence_grace - figures.kill_slack

    # ------------------------------------------------------------------------------------------- who must agree

    def recall(self, token: Token) -> None:
        """What an earlier life of the agent wrote for the process that runs under this token."""
        kept = self._world.promises.book.kept.get(self._replica)
        if kept is not None and kept.token == (token.epoch, token.index):
            self._token, self.members = token, kept.members

    async def before_writing(self, members: Mapping[str, str]) -> None:
        """More nodes may be about to be allowed to take the lock: from now on they are asked too."""
        if self.members:
            await self._settle({**self.members, **members})

    async def written(self, token: Token, members: Mapping[str, str]) -> None:
        """The record says so; what it said before may still be what somebody read."""
        self._token = token
        await self._settle({**self.members, **members} if members else {})

    async def read(self, token: Token, members: Mapping[str, str]) -> None:
        """The record was read and it says just these."""
        self._token = token
        await self._settle(members)

    async def over(self) -> None:
        """The lease is not held any more."""
        self.members, self.until = {}, 0.0
        await self._world.promises.keep(self._replica, None)

    async def _settle(self, members: Mapping[str, str]) -> None:
        self.members = members
        kept = Kept((self._token.epoch, self._token.index), members) if members else None
        await self._world.promises.keep(self._replica, kept)

    # ------------------------------------------------------------------------------------------- agreeing

    async def cycle(self) -> str:
        """Ask all, if Consul is silent and it is time; the code of what ends the lease, if somebody says no."""
        world, figures = self._world, self._world.session.figures
        started = world.clock.now()  # before anything is sent: promises begin later than this
        if not self.members or not world.session.silent:
            self._missing = None
            return ""
        if started < self._next:
            return ""
        answers = await self.ask(self.members)
        match verdict(self.members, world.node, answers):
            case Answer.REFUSAL:
                return REFUSED
            case Answer.PROMISE:
                self.until, self._next = started + figures.ttl, started + figures.renew_every
                await self._extend()
            case Answer.SILENCE:
                self._next = started + AGAIN
        self._tell(lacking(answers))
        return ""

    async def ask(self, members: Mapping[str, str]) -> dict[str, Answer]:
        """What each of them but this node says to not starting it for the TTL."""
        others = {name: api for name, api in sorted(members.items()) if name != self._world.node}
        found = await asyncio.gather(*(self._ask(name, api) for name, api in others.items()))
        return dict(zip(others, found, strict=True))

    async def _ask(self, name: str, api: str) -> Answer:
        world, figures = self._world, self._world.session.figures
        ask = Ask(cluster=world.cluster, node=name, holder=world.node, replica=self._replica, seconds=figures.ttl)
        try:
            async with asyncio.timeout(figures.http_timeout):
                ack = await world.peers.failsafe_ack(api, ask)
        except (TdieError, TimeoutError) as error:
            refused = isinstance(error, TdieError) and error.code == REFUSED
            log.debug("no promise", replica=self._replica, node=name, error=str(error))
            return Answer.REFUSAL if refused else Answer.SILENCE
        return Answer.PROMISE if (ack.node, ack.replica) == (name, self._replica) else Answer.SILENCE

    async def _extend(self) -> None:
        try:
            async with asyncio.timeout(self._world.session.figures.http_timeout):
                await self._world.keeper.agree(self._replica, self.until)
        except (TdieError, TimeoutError) as error:
            log.warning("the keeper was not told that all agree", replica=self._replica, error=str(error))

    def _tell(self, missing: tuple[str, ...]) -> None:
        if missing != self._missing:
            self._missing = missing
            log.warning(
                "Consul is away: who agrees that it runs on", replica=self._replica, missing=missing or "nobody"
            )
