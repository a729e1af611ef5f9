"""Whom this node obeys: the latest epoch that claimed it, and the assignment in force."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from agent import keys
from agent.carry import Carrier
from agent.edges import Edges, NodeSettings
from agent.errors import Invalid, Refused, TdieError, Waiting
from agent.expiry import Expiry
from agent.ledger import Remembered
from agent.ordered import Ordered
from agent.refusals import StaleLeader
from agent.report import ReportBook
from agent.wire import Accepted, Assignment, Claim, Claimed, has_its_digest

log = structlog.get_logger("agent")

MOST_AHEAD = (
    1_000_000  # epochs: more than any cluster ever had leaders, so a higher one is a mistake that would stay for ever
)
_EPOCH_PAUSE = 1.0  # seconds between tries to learn the latest epoch


class Leadership:
    """Takes claims and assignments one after the other; each is on disk before it is answered."""

    def __init__(
        self,
        settings: NodeSettings,
        edges: Edges,
        carrier: Carrier,
        book: ReportBook,
        accept: Callable[[Assignment, Ordered], None],
    ) -> None:
        """`accept` is called for an assignment that is in force from now on."""
        self._settings, self._edges, self._carrier, self._book, self._accept = settings, edges, carrier, book, accept
        self._commands = asyncio.Lock()  # claims and assignments one after the other
        self.epoch = 0  # the latest that is known here
        self._epoch_known = (
            False  # not before the ledger, or without it Consul, has said which leadership is the latest
        )

    def remember(self, held: Remembered) -> None:
        """What the ledger knows is in force."""
        self.epoch = held.epoch
        self._epoch_known = not held.rebuilt
        self._book.say(epoch=held.epoch, accepted=accepted(held.assignment))

    async def learn_epoch(self) -> None:
        """Without its ledger a node would obey a leader that was replaced long ago: Consul knows the latest epoch."""
        key = keys.epoch(self._settings.cluster)
        while not self._epoch_known:
            try:
                found = await self._edges.consul.get(key)
                async with self._commands:
                    self.epoch = max(self.epoch, int(found.value) if found else 0)
                    await self._edges.ledger.save_epoch(self.epoch)
                    self._epoch_known = True
                self._book.say(epoch=self.epoch)
                log.info("the ledger was lost; Consul says which epoch is the latest", epoch=self.epoch)
            except (TdieError, ValueError) as error:
                log.warning("the ledger was lost, and Consul does not say which epoch is the latest", error=str(error))
                await asyncio.sleep(_EPOCH_PAUSE)

    async def claim(self, claim: Claim) -> Claimed:
        """From now on nobody with a lower epoch commands this node."""
        self._must_know_epoch()
        async with self._commands:
            if claim.epoch < self.epoch:
                raise StaleLeader(f"epoch {claim.epoch} < {self.epoch}", self.epoch)
            if claim.epoch > self.epoch + MOST_AHEAD:
                raise Invalid(f"epoch {claim.epoch} is far beyond {self.epoch}", code="EPOCH_TOO_HIGH")
            if claim.epoch > self.epoch:
                await self._edges.ledger.save_epoch(claim.epoch)
                self.epoch = claim.epoch
                self._book.say(epoch=claim.epoch)
                log.info("claimed", epoch=claim.epoch)
            return Claimed(report=self._book.whole(), assignment=self._carrier.assignment)

    async def assign(self, offered: Assignment, expiry: Expiry | None) -> Accepted:
        """The assignment is in force and on disk; sending it again changes nothing. Without `expiry` (controllers before there was
        one) it is never too late."""
        self._must_know_epoch()
        if (offered.cluster, offered.node) != (self._settings.cluster, self._settings.node):
            raise Invalid(f"this is node {self._settings.cluster}/{self._settings.node}", code="WRONG_NODE")
        try:
            fits = has_its_digest(offered)
        except (ValueError, RecursionError) as error:  # what nobody could have written down
            raise Invalid("the assignment is nested too deep", code="TOO_DEEP") from error
        if not fits:
            raise Invalid(f"the content does not have digest {offered.digest}", code="DIGEST_MISMATCH")
        async with self._commands:
            if offered.epoch < self.epoch:
                raise StaleLeader(f"epoch {offered.epoch} < {self.epoch}", self.epoch)
            if offered.epoch > self.epoch:
                raise Refused(f"epoch {offered.epoch} has not claimed this node", code="NOT_CLAIMED")
            held = self._carrier.assignment
            if held is not None and offered.number == held.number:
                if offered.digest != held.digest:
                    raise Refused(f"generation {offered.generation} was another assignment", code="GENERATION_REUSED")
                return Accepted(epoch=held.epoch, generation=held.generation, digest=held.digest)
            if held is not None and offered.number < held.number:
                raise StaleLeader(f"generation {offered.generation} < {held.generation}", self.epoch)
            if expiry is not None:
                self._must_be_in_time(offered, expiry)
            ordered = self._carrier.ordered.taking(offered, self._edges.clock.now())
            await self._edges.ledger.save_assignment(offered, ordered)
            self._accept(offered, ordered)
            return Accepted(epoch=offered.epoch, generation=offered.generation, digest=offered.digest)

    def _must_be_in_time(self, offered: Assignment, expiry: Expiry) -> None:
        """Whoever sent it has given up on it since, or does not lead any more, and may have told others something else."""
        now, boot_id = self._edges.clock.now(), self._edges.boot_id
        if not expiry.over(boot_id, now):
            return
        late = f"{now - expiry.at:.1f} s too late" if boot_id == expiry.boot_id else "after this machine has booted"
        log.warning("refused, it came too late", epoch=offered.epoch, generation=offered.generation, late=late)
        raise Refused(f"generation {offered.generation} came {late}", code="EXPIRED")

    def _must_know_epoch(self) -> None:
        if not self._epoch_known:
            raise Waiting(
                "the ledger was lost, and Consul has not said yet which leadership is the latest",
                code="EPOCH_UNKNOWN",
                where=self._settings.node,
            )


def accepted(assignment: Assignment | None) -> Accepted | None:
    """How the report names an assignment."""
    if assignment is None:
        return None
    return Accepted(epoch=assignment.epoch, generation=assignment.generation, digest=assignment.digest)
