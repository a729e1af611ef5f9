"""One controller leads: Consul's lock, bound to a check that we keep alive, fenced by our own epoch (DESIGN §6)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import structlog

from agent import keys
from agent.clock import Clock, Monotonic
from agent.consul.protocol import Check, CheckGone, Consul, KeyValue, Service, SessionGone, TxnOp, TxnRefused
from agent.errors import TdieError, Waiting
from reconciler.execution import proven
from reconciler.execution.proven import NotLeading

log = structlog.get_logger("leadership")

EPOCH_TRIES = 20
# Seconds, the least that every Consul allows. Our check turns critical in the Consul agent it is registered at: when that is gone
# together with us, or is cut off, the check stays as it was and only this ends the session.
SESSION_TTL = 10.0


class LeadershipLost(Waiting):
    """This controller does not lead any more, or cannot be certain that it does: it sends nothing."""

    code = "LEADERSHIP_LOST"


@dataclass(slots=True)
class Term:
    """One leadership. `certain_until` is a local deadline: after it nothing may be sent (FAULTS row 3)."""

    epoch: int
    session: str
    certain_until: Monotonic
    fresh_consul: bool = False  # the epoch began anew a while ago: Consul may have forgotten what runs
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    why: str = ""

    def must_hold(self, now: Monotonic) -> None:
        """Raise LeadershipLost unless the last beat was answered recently enough."""
        if self.ended.is_set():
            raise LeadershipLost(self.why)
        if now >= self.certain_until:
            raise LeadershipLost("Consul has not answered a beat in time", code="LEADERSHIP_UNCERTAIN")


class Leadership:
    """This controller's part in the election, and its entry in Consul's catalog."""

    def __init__(self, cluster: str, name: str, api: str, *, consul: Consul, clock: Clock, ttl: float = 3.0) -> None:
        self.cluster = cluster
        self.name = name
        self._api = api
        self._consul = consul
        self._clock = clock
        self._ttl = ttl
        self._seen_epoch = 0  # the highest we have heard of, also over a wiped Consul
        self._sentence = "stands by"
        self._check = keys.controller_check_id(cluster, name)

    # ------------------------------------------------------------------------------------------- catalog entry

    async def register(self) -> None:
        """The controller is in the catalog with a passing check."""
        await self._consul.register(
            Service(
                id=keys.controller_service_id(self.cluster, self.name),
                name=keys.CONTROLLER_SERVICE,
                address=_host(self._api),
                port=_port(self._api),
                tags=(f"cluster={self.cluster}",),
                meta={keys.CLUSTER_META: self.cluster, keys.API_META: self._api},
                checks=(
                    Check(
                        id=self._check,
                        name="leads or stands by",
                        ttl=self._ttl,
                        status="passing",
                        notes=self._sentence,  # Consul withholds a new output while the status is unchanged
                        deregister_after=600.0,
                    ),
                ),
            )
        )
        await self._consul.check_update(self._check, "passing", self._sentence)

    async def _say(self, sentence: str) -> None:
        """The sentence an operator reads in Consul's UI."""
        self._sentence = sentence
        await self.register()

    async def withdraw(self) -> None:
        """The controller is no longer in the catalog."""
        await self._consul.deregister(keys.controller_service_id(self.cluster, self.name))

    # ------------------------------------------------------------------------------------------- election

    @asynccontextmanager
    async def term(self) -> AsyncIterator[Term]:
        """Wait until this controller leads; the term ends with the block, or by itself (`Term.ended`).

        Raises what Consul cannot do, at once: whoever wants to lead tries again.
        """
        await self._register_anew()
        session = await self._consul.session_create(
            f"tdie controller {self.name}",
            ttl=max(SESSION_TTL, 2 * self._ttl),
            lock_delay=0.0,
            service_checks=[self._check],
        )
        beats = asyncio.create_task(self._stand_by(session), name="stand-by beats")
        try:
            await self._acquire(session, beats)
            beats.cancel()
            term = await self._open(session)
            keeping = asyncio.create_task(self._keep(term), name="leader beats")
            try:
                yield term
            finally:
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)
        finally:
            beats.cancel()
            await asyncio.gather(beats, return_exceptions=True)
            with suppress(TdieError):  # Consul ends it with our check otherwise
                await self._consul.session_destroy(session)

    async def _register_anew(self) -> None:
        """Registered anew. The old check goes first, and with it any session of an earlier life of ours.

        That session is bound to a check of the same name: our own beats would keep it, and its lock, alive for ever.
        """
        await self.withdraw()
        await self.register()

    async def _acquire(self, session: str, beats: asyncio.Task[None]) -> None:
        """Hold the leader key; watches it while somebody else does."""
        key, index = keys.leader(self.cluster), 0
        while True:
            if beats.done():
                beats.result()
            if await self._consul.acquire(key, self._leader_value(), session):
                return
            index, entry = await self._wait_free(key, index)
            if entry is not None and entry.session and _leader_name(entry) not in self._sentence:
                await self._say(f"stands by; {_leader_name(entry)} leads")

    async def _wait_free(self, key: str, index: int) -> tuple[int, KeyValue | None]:
        index, entry = await self._consul.watch(key, index, 10.0)
        if entry is None or entry.session is None:
            await asyncio.sleep(0.05)  # lock-delay of somebody else's session, or a race: do not spin
        return index, entry

    async def _open(self, session: str) -> Term:
        started = self._clock.now()
        epoch, fresh = await self._new_epoch(session, self._seen_epoch)
        await self._say(f"leads since {self._clock.wall():%Y-%m-%d %H:%M:%S} UTC with epoch {epoch}")
        return Term(epoch, session, Monotonic(started + self._ttl), fresh)

    async def raise_epoch(self, term: Term, at_least: int) -> None:
        """The term goes on with an epoch above `at_least` (a node has heard of a later leadership than ours)."""
        self._seen_epoch = max(self._seen_epoch, at_least)
        term.epoch, _ = await self._new_epoch(term.session, self._seen_epoch, rewound=True)
        log.warning("epoch raised", epoch=term.epoch, because=at_least)

    async def _new_epoch(self, session: str, at_least: int, *, rewound: bool = False) -> tuple[int, bool]:
        """Set `epoch` to max(stored, heard of) + 1 in one transaction that also proves that we hold `leader`.

        When Consul has lost data (we know that by now, or its epoch is behind), that is written down with it: no later leader could
        find it out. So is that it may have: there is no epoch, as at the very first start.
        """
        key, fresh = keys.epoch(self.cluster), keys.fresh(self.cluster)
        for _ in range(EPOCH_TRIES):
            entry = await self._consul.get(key)
            stored = int(entry.value) if entry else 0
            epoch = max(stored, at_least) + 1
            ops = [TxnOp("cas", key, str(epoch).encode(), index=entry.modify_index if entry else 0)]
            if rewound or stored < at_least:
                ops.append(TxnOp("set", keys.rewound(self.cluster), self._since()))
            if entry is None:
                ops.append(TxnOp("set", fresh, self._since()))
            try:
                await proven.write(self._consul, proven.leads(self.cluster, session), ops)
            except NotLeading as error:
                raise LeadershipLost("another controller took the leader key") from error
            except TxnRefused:
                continue
            self._seen_epoch = epoch
            return epoch, await self._consul.get(fresh) is not None
        raise LeadershipLost("the epoch key changes faster than it can be set")

    async def nothing_forgotten(self, term: Term) -> None:
        """Whatever Consul may have forgotten had its time to come back: no later leader waits for it again."""
        proof = proven.leads(self.cluster, term.session)
        await proven.write(self._consul, proof, [TxnOp("delete", keys.fresh(self.cluster))])

    # ------------------------------------------------------------------------------------------- beats

    async def _stand_by(self, session: str) -> None:
        """Beat until cancelled; ends with an error when the session is over."""
        while True:
            await asyncio.sleep(self._ttl / 3)
            await self._consul.check_update(self._check, "passing", self._sentence)
            try:
                await self._consul.session_renew(session)
            except SessionGone as error:
                raise LeadershipLost("Consul ended the session while standing by") from error

    async def _keep(self, term: Term) -> None:
        """Beat and prove that the key is still ours; the term ends when it is not, or certainty runs out."""
        while not term.ended.is_set():
            sent = self._clock.now()
            try:
                async with asyncio.timeout(self._ttl):
                    await self._consul.check_update(self._check, "passing", self._sentence)
                    await self._consul.session_renew(term.session)
                    entry = await self._consul.get(keys.leader(self.cluster))
                    epoch = await self._consul.get(keys.epoch(self.cluster))
                if entry is None or entry.session != term.session:
                    self._end(term, "another session holds the leader key, or Consul forgot it")
                    return
                if epoch is None or int(epoch.value) < term.epoch:  # nodes give no token under a lower one
                    self._end(term, "Consul has an epoch before ours: it came back with an older snapshot")
                    return
                term.certain_until = Monotonic(sent + self._ttl)
            except CheckGone:
                self._end(term, "Consul restarted and forgot this controller")
                return
            except SessionGone:
                self._end(term, "Consul ended the session")
                return
            except (TdieError, TimeoutError) as error:
                if self._clock.now() >= term.certain_until:
                    self._end(term, f"Consul does not answer: {error}")
                    return
            await asyncio.sleep(self._ttl / 3)

    def _end(self, term: Term, why: str) -> None:
        term.why = why
        self._sentence = "stands by"
        term.ended.set()

    def _leader_value(self) -> bytes:
        return self._since(name=self.name, api=self._api)

    def _since(self, **value: str) -> bytes:
        return json.dumps({**value, "since": f"{self._clock.wall():%Y-%m-%dT%H:%M:%SZ}"}).encode()


def _leader_name(entry: KeyValue) -> str:
    try:
        return str(json.loads(entry.value)["name"])
    except (ValueError, KeyError, TypeError):
        return "another controller"


def _host(api: str) -> str:
    return api.split("://", 1)[-1].rsplit(":", 1)[0].strip("[]")


def _port(api: str) -> int:
    tail = api.split("://", 1)[-1].rsplit(":", 1)[-1].strip("/")
    return int(tail) if tail.isdigit() else 0
