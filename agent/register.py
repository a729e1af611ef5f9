"""This agent in Consul: its name, its beat, and one service entry for each replica. Hosts are never touched from here."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress

import structlog

from agent import keys
from agent.checks import REPLICA_TTL, Entry
from agent.clock import Clock
from agent.consul.protocol import Check, CheckGone, Consul, KeyValue, Service, SessionGone
from agent.edges import NodeSettings
from agent.errors import Denied, Refused, TdieError, Waiting
from agent.ledger import Ledger
from agent.wire import canonical_json

log = structlog.get_logger("register")

LABELS_META = "tdie-labels"
CAPACITY_META = "tdie-capacity"
VERSION_META = "tdie-version"
_META_LIMIT = 512  # Consul refuses longer values
_AT_ONCE = 8  # service entries being written at the same time
_LINGER = 0.05  # seconds in which changes of replicas are collected …
_LONGEST_LINGER = 1.0  # … again and again while there are more of them: a rollout is written as where it led
# Seconds, the least that every Consul allows: our check turns critical only where it is registered, and not if that Consul agent
# is gone together with us; then this ends our hold on the name.
_SESSION_TTL = 10.0
_COMPARE_EVERY = 12  # beats between looks whether Consul still shows what we told it


class NameTaken(Refused):
    """Another agent holds this node's name; nothing was touched."""

    code = "AGENT_NAME_TAKEN"


class Registrar:
    """Keeps Consul's view of this node true, through outages, restarts and wiped data."""

    def __init__(
        self,
        settings: NodeSettings,
        *,
        consul: Consul,
        clock: Clock,
        ledger: Ledger,
        uniform: Callable[[float, float], float],
        agent: str,
        problem: Callable[[str, str], None],
    ) -> None:
        """`problem(code, detail)` makes a problem known, with an empty detail it is healed."""
        self._settings = settings
        self._consul = consul
        self._clock = clock
        self._ledger = ledger
        self._uniform = uniform
        self._agent = agent
        self._problem = problem
        self._session = ""
        self._registered = asyncio.Event()
        self._wanted: dict[str, Callable[[], Entry]] = {}
        self._shown: dict[str, Entry] = {}
        self._dirty: set[str] = set()
        self._wake = asyncio.Event()
        self._sweep_due = False
        self._complete = False  # all replicas of this node have been told to us
        cluster, node = settings.cluster, settings.node
        self._check = keys.agent_check_id(cluster, node)
        self._key = keys.node(cluster, node)
        self._output = f"tdie agent {settings.version} of {node}, API {settings.api}"

    # ------------------------------------------------------------------------------------------- the agent itself

    async def register(self, session: str) -> None:
        """The name is ours and the agent is in the catalog. Raises NameTaken, or Waiting when Consul cannot be asked.

        `session` is the one remembered from an earlier run: what it holds is still ours.
        """
        self._session = self._session or session
        self._must_be_free(await self._consul.get(self._key))
        await self._consul.register(self._service())
        await self._consul.check_update(self._check, "passing", self._output)
        await self._hold_name()
        self._shown.clear()
        self._dirty |= self._wanted.keys()
        self._sweep_due = True
        self._registered.set()
        self._wake.set()
        log.info("registered", node=self._settings.node, api=self._settings.api)

    async def stay(self) -> None:
        """Beat for ever. Raises NameTaken only if the name never was ours."""
        third = self._settings.beat_ttl / 3
        pause, ours, beats = min(1.0, third), self._registered.is_set(), 0
        while True:
            try:
                if not self._registered.is_set():
                    await self.register(self._session)
                ours = True
                await self._beat()
                beats += 1
                if beats % _COMPARE_EVERY == 0:
                    await self._compare()
                for code in ("CONSUL_UNAVAILABLE", "CONSUL_DENIED", NameTaken.code):
                    self._problem(code, "")
                pause = min(1.0, third)
                await asyncio.sleep(third)
            except CheckGone:
                log.warning("Consul does not know this agent any more, registering again")
                self._registered.clear()
                await asyncio.sleep(self._uniform(0.0, min(2.0, third)))
            except NameTaken as error:
                if not ours:
                    raise
                self._registered.clear()
                self._problem(error.code, error.detail)
                await asyncio.sleep(third)
            except TdieError as error:
                self._trouble(error)
                await asyncio.sleep(pause * self._uniform(0.8, 1.2))
                pause = min(pause * 2, max(1.0, third))

    async def _beat(self) -> None:
        """The same status and output each time: no raft write. The key shows whether name and session are still ours."""
        await self._consul.check_update(self._check, "passing", self._output)
        with suppress(SessionGone):  # then it does not hold the key either
            await self._consul.session_renew(self._session)
        held = await self._consul.get(self._key)
        if held is None or held.session != self._session:
            self._must_be_free(held)
            await self._hold_name()

    async def _hold_name(self) -> None:
        if not self._session or await self._consul.session_info(self._session) is None:
            self._session = await self._new_session()
            await self._ledger.save_session(self._session)  # before first use, so that a restart still knows it
        if not await self._consul.acquire(self._key, self._value(), self._session):
            self._must_be_free(await self._consul.get(self._key))
            raise Waiting(f"{self._key} cannot be acquired yet", code="CONSUL_UNAVAILABLE")

    async def _new_session(self) -> str:
        """A check reaches the catalog a moment after it was registered; until then a session cannot be bound to it."""
        for attempt in range(1, 11):
            try:
                return await self._consul.session_create(
                    f"tdie agent {self._settings.node}",
                    ttl=max(_SESSION_TTL, self._settings.beat_ttl),
                    lock_delay=0.0,
                    service_checks=(self._check,),
                )
            except Denied:
                raise
            except TdieError:
                if attempt == 10:
                    raise
                await asyncio.sleep(0.05 * attempt)
        raise AssertionError("unreachable")

    def _must_be_free(self, held: KeyValue | None) -> None:
        if held is not None and held.session and held.session != self._session:
            raise NameTaken(
                f"the name '{self._settings.node}' is held by another agent: {_who(held)}",
                hint="give this machine another name with --node, or stop the other agent",
            )

    def _service(self, *, shown: bool = False) -> Service:
        """With `shown` it says that all replicas of this node are in the catalog."""
        settings = self._settings
        meta = {
            keys.REPLICAS_META: "shown" if shown else "",
            keys.CLUSTER_META: settings.cluster,
            keys.NODE_META: settings.node,
            keys.API_META: settings.api,
            VERSION_META: settings.version,
            LABELS_META: canonical_json(dict(settings.labels)).decode(),
            CAPACITY_META: canonical_json(settings.capacity.model_dump(by_alias=True, exclude_none=True)).decode(),
        }
        return Service(
            id=keys.agent_service_id(settings.cluster, settings.node),
            name=keys.AGENT_SERVICE,
            address=settings.address,
            port=_port(settings.api),
            tags=(f"cluster={settings.cluster}",),
            meta={key: value for key, value in meta.items() if len(value.encode()) <= _META_LIMIT},  # reports tell all
            checks=(
                Check(id=self._check, name=f"tdie agent {settings.node}", ttl=settings.beat_ttl, status="passing"),
            ),
        )

    def _value(self) -> bytes:
        settings = self._settings
        said = {**settings.about, "node": settings.node, "api": settings.api, "agent": self._agent}
        return json.dumps({**said, "since": self._clock.wall().isoformat(timespec="seconds")}, indent=1).encode()

    # ------------------------------------------------------------------------------------------- its replicas

    def show(self, replica: str, entry: Callable[[], Entry]) -> None:
        """Consul soon shows this replica so; nothing is written when it already does."""
        self._wanted[replica] = entry
        self._dirty.add(replica)
        self._wake.set()

    def hide(self, replica: str) -> None:
        """Consul soon shows no such replica."""
        if self._wanted.pop(replica, None) is not None:
            self._dirty.add(replica)
            self._wake.set()

    def complete(self) -> None:
        """Every replica of this node has been shown once: what else Consul has of this node is left over."""
        self._complete = True
        self._wake.set()

    async def publish(self) -> None:
        """Write changes of replicas for ever; re-pass their checks well within their TTL."""
        pause = 1.0
        while True:
            try:
                async with asyncio.timeout(REPLICA_TTL / 4):
                    await self._wake.wait()
            except TimeoutError:
                self._dirty |= self._wanted.keys()
                self._shown.clear()
            await self._lull()
            await self._registered.wait()
            try:
                await self._publish_dirty()
                await self._sweep()
                pause = 1.0
            except TdieError as error:
                self._wake.set()
                self._trouble(error)
                await asyncio.sleep(pause * self._uniform(0.8, 1.2))
                pause = min(pause * 2, 30.0)

    async def _lull(self) -> None:
        """Nothing has changed for a moment, or changes have gone on for long enough."""
        for _ in range(round(_LONGEST_LINGER / _LINGER)):
            self._wake.clear()
            await asyncio.sleep(_LINGER)
            if not self._wake.is_set():
                return
        self._wake.clear()

    async def leave(self) -> None:
        """Nothing of this node is in the catalog any more, and its name is free."""
        ids = list(self._ids())
        for service in [*ids, keys.agent_service_id(self._settings.cluster, self._settings.node)]:
            await self._consul.deregister(service)
        if self._session:
            await self._consul.session_destroy(self._session)

    async def _publish_dirty(self) -> None:
        while self._dirty:
            batch = sorted(self._dirty)[:_AT_ONCE]
            self._dirty -= set(batch)
            results = await asyncio.gather(*(self._publish_one(name) for name in batch), return_exceptions=True)
            failures = [(n, r) for n, r in zip(batch, results, strict=True) if isinstance(r, BaseException)]
            self._dirty |= {name for name, _ in failures}
            if failures:
                raise failures[0][1]

    async def _publish_one(self, replica: str) -> None:
        wanted = self._wanted.get(replica)
        settings = self._settings
        entry = wanted() if wanted is not None else None
        if entry is None:
            await self._consul.deregister(keys.replica_service_id(settings.cluster, settings.node, replica))
            self._shown.pop(replica, None)
        elif self._shown.get(replica) != entry:
            # Registering keeps the status of a check that exists, and an update alone may keep an old text: so both.
            await self._consul.register(entry.service)
            await self._consul.check_update(entry.check, entry.status, entry.sentence)
            self._shown[replica] = entry

    def _ids(self) -> frozenset[str]:
        settings = self._settings
        return frozenset(keys.replica_service_id(settings.cluster, settings.node, name) for name in self._wanted)

    async def _sweep(self) -> None:
        """Take away what an earlier life of this agent left in Consul, and say that the rest is all there is."""
        if not (self._sweep_due and self._complete):
            return
        for service in sorted(await self._ours()):
            if service not in self._ids():
                await self._consul.deregister(service)
        if self._registered.is_set() and not self._dirty:  # Consul has not lost them meanwhile
            await self._consul.register(self._service(shown=True))
            self._sweep_due = False

    async def _compare(self) -> None:
        """Somebody may have taken entries away by hand: show them again."""
        there = await self._ours()
        gone = {name for name, entry in self._shown.items() if entry.service.id not in there}
        for name in gone:
            del self._shown[name]
        if gone:
            self._dirty |= gone
            self._wake.set()

    async def _ours(self) -> frozenset[str]:
        found = await self._consul.local_services()
        mine = (self._settings.cluster, self._settings.node)
        return frozenset(
            service.id
            for service in found.values()
            if (service.meta.get(keys.CLUSTER_META), service.meta.get(keys.NODE_META)) == mine
            and service.name not in (keys.AGENT_SERVICE, keys.CONTROLLER_SERVICE)
        )

    def _trouble(self, error: TdieError) -> None:
        code = "CONSUL_DENIED" if isinstance(error, Denied) else "CONSUL_UNAVAILABLE"
        self._problem(code, error.detail)


def _who(held: KeyValue) -> str:
    try:
        value = json.loads(held.value)
        return ", ".join(f"{key} {value[key]}" for key in ("host", "pid", "data", "api", "since") if value.get(key))
    except (ValueError, TypeError, AttributeError):
        return held.value.decode(errors="replace")[:200]


def _port(api: str) -> int:
    port = api.rstrip("/").rpartition(":")[2]
    return int(port) if port.isdecimal() else 0
