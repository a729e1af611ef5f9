"""What happens to a message on its node: accepted, routed, given to a replica, tried again, done or dead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import structlog

from agent.bus.file import Key
from agent.bus.lanes import Consumer, Lane
from agent.bus.room import Room
from agent.bus.routes import Routes
from agent.bus.store import Store
from agent.bus.table import Table
from agent.bus.values import NOBODY, Counters, Delivery, Envelope, Limits
from agent.clock import Clock
from agent.errors import Waiting
from agent.sdk.message import Subscription

log = structlog.get_logger("bus")

LOOK = 5.0  # seconds between looks at what time alone changes
_TRIM_EVERY = 12  # looks


class Bus:
    """The bus of one node. `run` it first; what others call expects `ready`, and the same event loop."""

    def __init__(
        self, limits: Limits, *, store: Store, clock: Clock, routes: Routes, problem: Callable[[str, str], None]
    ) -> None:
        """`problem(code, detail)` makes a problem known, with an empty detail it is healed."""
        self.limits = limits
        self.store = store
        self.clock = clock
        self.routes = routes
        self.problem = problem
        self.ready = asyncio.Event()
        self.room = Room(limits)
        self.counters = Counters()
        self.lanes: dict[str, Lane] = {}
        self.dead: dict[Key, Delivery] = {}
        self._seq = 0
        self._open: dict[int, int] = {}  # sequence number → deliveries that are not done
        self._bodies: dict[int, bytes] = {}
        self._cached = 0
        self._finished: list[Key] = []
        self._leaving: set[tuple[str, str]] = set()  # id and instance of what is on its way to another node
        self._began: Callable[[Lane], None] = lambda lane: None

    # ------------------------------------------------------------------------------------------- its life

    async def open(self, began: Callable[[Lane], None]) -> None:
        """What the file holds is known. `began(lane)` is called for each lane there is or will be."""
        pause = 1.0
        while True:
            try:
                rebuilt = await self.store.open()
                found, self._seq = await self.store.do(lambda file: file.deliveries())
                break
            except Waiting as error:
                self.problem(error.code, error.detail)
                await asyncio.sleep(pause)
                pause = min(30.0, pause * 2)
        self.problem("BUS_WRITE", "")
        self.problem("BUS_REBUILT", rebuilt)
        self._began = began
        now = self.clock.now()
        for delivery in found:
            delivery.since = delivery.due = now
            self._hold(delivery)
            if delivery.dead:
                self.dead[delivery.seq, delivery.instance] = delivery
            else:
                self.lane(delivery.instance).add(delivery)
        self.say_dead()
        self.ready.set()

    async def keep_house(self) -> None:
        """What time alone changes, for ever: messages nobody wanted, instances that left, ids that need not be known."""
        looks = trimmed_at = 0
        while True:
            await asyncio.sleep(LOOK)
            looks += 1
            self._claim()
            self._rename()
            self._drop_unclaimed()
            self._bury_orphans()
            self.problem("BUS_BACKLOG", self.room.near_limit())
            self._write_finished()
            if looks % _TRIM_EVERY == 0 and self.counters.accepted != trimmed_at:
                trimmed_at = self.counters.accepted
                await self._trim()

    async def _trim(self) -> None:
        before = self.clock.wall().timestamp() - self.limits.remembered
        try:
            while await self.store.do(lambda file: file.trim(before, self.limits.remembered_count)):
                await asyncio.sleep(0.1)
        except Waiting as error:
            self.problem(error.code, error.detail)

    # ------------------------------------------------------------------------------------------- what comes in

    async def accept(self, envelopes: Sequence[Envelope]) -> asyncio.Future[None]:
        """Waits for room, then returns what is done once all of these are on disk; a known id is accepted and ignored."""
        for envelope in envelopes:
            await self.room.wait(envelope.topic, len(envelope.body))
        return self._accept(envelopes)

    def take_over(self, envelopes: Sequence[Envelope]) -> asyncio.Future[None]:
        """The same for messages of another node. Raises Waiting (BUS_FULL, BUS_BUSY) instead of waiting."""
        if not all(self.room.fits(envelope.topic, len(envelope.body)) for envelope in envelopes):
            raise Waiting("the bus of this node has no room", code="BUS_FULL", hint="it is tried again")
        if any((envelope.id, name) in self._leaving for envelope in envelopes for name in envelope.instances):
            raise Waiting("one of these is just being handed on from here", code="BUS_BUSY", hint="it is tried again")
        self.counters.received += len(envelopes)
        return self._accept(envelopes)

    def _accept(self, envelopes: Sequence[Envelope]) -> asyncio.Future[None]:
        entries: list[tuple[int, Envelope]] = []
        for envelope in envelopes:
            self._seq += 1
            routed = envelope.instances or self.routes.subscribers(envelope.topic, envelope.type) or (NOBODY,)
            entries.append((self._seq, replace(envelope, instances=routed)))
            self.room.take(envelope.topic, len(envelope.body))
        stamp = self.clock.wall().timestamp()
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        written = self.store.do(lambda file: file.accept(entries, stamp), durable=True)
        written.add_done_callback(lambda done: self._accepted(entries, stamp, done, answer))
        return answer

    def _accepted(
        self,
        entries: Sequence[tuple[int, Envelope]],
        stamp: float,
        done: asyncio.Future[list[tuple[str, ...]]],
        answer: asyncio.Future[None],
    ) -> None:
        """A callback and no task: nobody's cancellation may leave a message on disk that memory knows nothing of."""
        for _, envelope in entries:
            self.room.give(envelope.topic, len(envelope.body))
        if done.cancelled() or (error := done.exception()) is not None:
            failure = Waiting("the bus stops") if done.cancelled() else error
            self.problem("BUS_WRITE", str(failure))
            if not answer.done() and failure is not None:
                answer.set_exception(failure)
            return
        self.problem("BUS_WRITE", "")
        now = self.clock.now()
        for (seq, envelope), fresh in zip(entries, done.result(), strict=True):
            self.counters.accepted += bool(fresh)
            self.counters.duplicates += not fresh
            if fresh and self._cached + len(envelope.body) <= self.limits.cached_bytes:
                self._bodies[seq] = envelope.body
                self._cached += len(envelope.body)
            for name in fresh:
                self._arrived(_delivery(seq, envelope, name, stamp, now))
        if not answer.done():
            answer.set_result(None)

    def _arrived(self, delivery: Delivery) -> None:
        self._hold(delivery)
        if delivery.hops > 3:  # nodes that hand on in circles do it ever more slowly
            delivery.due = delivery.since + min(LOOK, 0.05 * 2 ** min(delivery.hops, 10))
        lane = self.lane(delivery.instance)
        lane.add(delivery)
        lane.wake.set()

    def _hold(self, delivery: Delivery) -> None:
        if delivery.seq not in self._open:
            self._open[delivery.seq] = 0
            self.room.take(delivery.topic, delivery.size)
        self._open[delivery.seq] += 1

    def let_go(self, delivery: Delivery) -> None:
        """This node has nothing more to do with it."""
        self._open[delivery.seq] -= 1
        if not self._open[delivery.seq]:
            del self._open[delivery.seq]
            self.room.give(delivery.topic, delivery.size)
            self._cached -= len(self._bodies.pop(delivery.seq, b""))

    @contextmanager
    def leaving(self, deliveries: Sequence[Delivery]) -> Iterator[None]:
        """These are on their way to another node. Were they taken for known when they come back, both would let them go."""
        keys = {(delivery.id, delivery.instance) for delivery in deliveries}
        self._leaving |= keys
        try:
            yield
        finally:
            self._leaving -= keys

    async def bodies(self, deliveries: Sequence[Delivery]) -> Mapping[int, bytes]:
        """Their JSON texts by sequence number, from memory or from the file. Raises Waiting (BUS_WRITE)."""
        missing = [delivery.seq for delivery in deliveries if delivery.seq not in self._bodies]
        read = await self.store.do(lambda file: file.bodies(missing)) if missing else {}
        return {d.seq: self._bodies[d.seq] if d.seq in self._bodies else read.get(d.seq, b"") for d in deliveries}

    # ------------------------------------------------------------------------------------------- who subscribes

    def know(self, table: Table) -> None:
        """This is what Consul says now."""
        if self.routes.read(table, self.clock.now()):
            self._claim()
            self._rename()

    def know_local(self, local: Mapping[str, tuple[Subscription, ...]]) -> None:
        """What the instances subscribe to that this node was told to run."""
        if self.routes.told(local):
            self._claim()
            self._rename()

    def _claim(self) -> None:
        """Messages that waited for a subscriber go to those there are now."""
        unclaimed = self.lanes.get(NOBODY)
        if unclaimed is None or not unclaimed.ready or not self.routes.known:
            return
        moved = [d for d in unclaimed.ready if self.routes.subscribers(d.topic, d.type)]
        unclaimed.remove(set(moved))
        for delivery in moved:
            self._route(delivery, self.routes.subscribers(delivery.topic, delivery.type))

    def _rename(self) -> None:
        """Messages for an instance that has another name now go to it under that."""
        for lane in list(self.lanes.values()):
            if now_called := self.routes.renamed(lane.instance):
                waiting = lane.waiting()
                lane.remove(set(waiting))
                for delivery in waiting:
                    self._route(delivery, (now_called,))

    def _route(self, delivery: Delivery, instances: tuple[str, ...]) -> None:
        stamp = self.clock.wall().timestamp()
        key = (delivery.seq, delivery.instance)

        def routed(done: asyncio.Future[tuple[str, ...]]) -> None:
            if done.cancelled() or done.exception() is not None:
                self.problem("BUS_WRITE", "whom a message goes to cannot be written")
                self.lane(delivery.instance).add(delivery)
                return
            for name in done.result():
                self._arrived(replace(delivery, instance=name))
            self.let_go(delivery)

        written = self.store.do(lambda file: file.route(key, delivery.id, instances, stamp), durable=True)
        written.add_done_callback(routed)

    def _drop_unclaimed(self) -> None:
        """Nobody subscribes, and that was read well after it came: it is dropped, and counted."""
        unclaimed = self.lanes.get(NOBODY)
        if unclaimed is None or not self.routes.known:
            return
        gone = [d for d in unclaimed.ready if self.routes.read_at >= d.since + self.limits.unclaimed]
        unclaimed.remove(set(gone))
        self.counters.dropped += len(gone)
        for delivery in gone:
            self._finish(delivery)

    def _bury_orphans(self) -> None:
        """Messages for instances that do not subscribe any more become dead letters after a while."""
        now = self.clock.now()
        for lane in self.lanes.values() if self.routes.known else ():
            if lane.instance == NOBODY or lane.consumers or self.routes.subscribes(lane.instance):
                lane.orphan_since = None
            elif lane.orphan_since is None:
                lane.orphan_since = now
            elif now - lane.orphan_since > self.limits.orphaned and self.routes.read_at > lane.orphan_since:
                waiting = lane.waiting()
                lane.remove(set(waiting))
                for delivery in waiting:
                    self.bury(delivery, f"NOT_SUBSCRIBED nothing called '{lane.instance}' subscribes any more")

    # ------------------------------------------------------------------------------------------- consumers

    def lane(self, instance: str) -> Lane:
        """The lane of an instance; it begins when it is asked for first."""
        lane = self.lanes.get(instance)
        if lane is None:
            lane = self.lanes[instance] = Lane(instance, away_since=self.clock.now())
            self._began(lane)
        return lane

    def join(self, consumer: Consumer) -> None:
        """A replica of this node takes messages from now on."""
        lane = self.lane(consumer.instance)
        lane.consumers.append(consumer)
        lane.wake.set()

    def leave(self, consumer: Consumer, *, politely: bool) -> None:
        """It takes none any more; what it held comes back. If it left without a word, the one it worked on was tried."""
        lane = self.lane(consumer.instance)
        lane.consumers.remove(consumer)
        if not lane.consumers:
            lane.away_since = self.clock.now()
        held = list(consumer.held.values())
        consumer.held.clear()
        if held and not politely:
            self._tried(held.pop(0), "its host ended while it worked on this", pause=0.0)
        lane.back(held)
        lane.wake.set()

    def done(self, consumer: Consumer, number: int) -> None:
        """The replica has worked on it."""
        if (delivery := consumer.held.pop(number, None)) is not None:
            self.counters.delivered += 1
            self._finish(delivery)
            self.lane(consumer.instance).wake.set()

    def failed(self, consumer: Consumer, number: int, error: str) -> None:
        """The replica could not work on it: it is tried again later, or becomes a dead letter."""
        if (delivery := consumer.held.pop(number, None)) is not None:
            self.counters.failed += 1
            self._tried(delivery, error, pause=self.limits.pause_after(delivery.attempts + 1))
            self.lane(consumer.instance).wake.set()

    def _tried(self, delivery: Delivery, error: str, pause: float) -> None:
        delivery.attempts += 1
        if delivery.attempts >= self.limits.attempts:
            self.bury(delivery, error)
            return
        delivery.error = error[:1000]
        self.lane(delivery.instance).later(delivery, self.clock.now() + pause)
        key, attempts, said = (delivery.seq, delivery.instance), delivery.attempts, delivery.error
        self.write(self.store.do(lambda file: file.failed(key, attempts, said, dead=False)))

    def bury(self, delivery: Delivery, error: str) -> None:
        """It is a dead letter: kept with its error until a person decides."""
        delivery.dead, delivery.error = True, error[:1000]
        self.counters.dead += 1
        key, attempts, said = (delivery.seq, delivery.instance), delivery.attempts, delivery.error
        self.dead[key] = delivery
        log.warning("dead letter", id=delivery.id, topic=delivery.topic, instance=delivery.instance, error=said)
        self.say_dead()
        self.write(self.store.do(lambda file: file.failed(key, attempts, said, dead=True)))

    def say_dead(self) -> None:
        """Dead letters are a problem of this node while there are any."""
        count = len(self.dead)
        text = f"{count} message{'s' if count > 1 else ''} could not be delivered; see tdie messages list"
        self.problem("BUS_DEAD_LETTERS", text if count else "")

    def _finish(self, delivery: Delivery) -> None:
        """Nothing is left to do for it; the file hears of many at once."""
        self.let_go(delivery)
        if not self._finished:
            asyncio.get_running_loop().call_soon(self._write_finished)
        self._finished.append((delivery.seq, delivery.instance))

    def _write_finished(self) -> None:
        keys, self._finished = self._finished, []
        if not keys:
            return

        def written(done: asyncio.Future[None]) -> None:
            if done.cancelled() or done.exception() is not None:
                self._finished[:0] = keys  # said again with the next ones, or at the next look
                self.problem("BUS_WRITE", "what was delivered cannot be written down")

        self.store.do(lambda file: file.done(keys)).add_done_callback(written)

    def write(self, done: asyncio.Future[None]) -> None:
        """Nobody waits for this; should it fail, it is a problem of the node."""

        def written(done: asyncio.Future[None]) -> None:
            if not done.cancelled() and (error := done.exception()) is not None:
                self.problem("BUS_WRITE", str(error))

        done.add_done_callback(written)


def _delivery(seq: int, envelope: Envelope, instance: str, stamp: float, now: float) -> Delivery:
    return Delivery(
        seq, instance, envelope.id, envelope.topic, envelope.type, len(envelope.body), stamp,
        hops=envelope.hops, since=now, due=now,
    )  # fmt: skip
