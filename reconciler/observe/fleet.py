"""Knows every agent of the cluster while this controller leads, and answers with a snapshot at any time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import structlog

from agent import keys
from agent.client import NodeApi
from agent.clock import Clock, Monotonic
from agent.consul.protocol import Consul, KeyValue, ServiceHealth
from agent.errors import TdieError, Waiting
from agent.expiry import Expiry
from agent.steps import is_by_hand
from agent.wire import Assignment
from reconciler.model.observed import NodeView, NodeWish, ObservedState, Presence
from reconciler.observe import views, wishes
from reconciler.observe.follower import Followed, Follower
from reconciler.observe.watched import AGAIN, WATCH, keys_below
from reconciler.observe.witness import Finding, Says, Witness, consul_says, presence

log = structlog.get_logger("observe")

UNHEARD = 3.0  # seconds between looks for nodes that do not answer from the start


class Fleet:
    """The fleet as this controller sees it. One long poll per agent, three watches on Consul, no polling."""

    def __init__(
        self,
        cluster: str,
        *,
        consul: Consul,
        nodes: NodeApi,
        clock: Clock,
        wake: Callable[[str], None],
        beat_ttl: float = 15.0,
    ) -> None:
        self._cluster = cluster
        self._consul = consul
        self._api = nodes
        self._clock = clock
        self._wake = wake
        self._beat_ttl = beat_ttl
        self._nodes: dict[str, Followed] = {}
        self._epoch = 0
        self._locks: Mapping[str, str] = {}
        self._wishes: dict[str, NodeWish] = {}
        self._wishes_known = asyncio.Event()  # no node is claimed before: one may be cordoned or drained
        self._patience_until = Monotonic(0.0)  # until then an absent catalog entry proves nothing
        self._beats_due_until = Monotonic(0.0)  # … and neither does a critical check of a node that answers
        self._snapshot: tuple[object, ObservedState, Monotonic | None] | None = None
        self.version = 0  # grows with every observable change

    # ------------------------------------------------------------------------------------------- while leading

    async def follow(self, epoch: int, session: str, *, fresh_consul: bool) -> None:
        """Follow all agents until cancelled. Raises HigherEpoch when a node knows a later leadership.

        `fresh_consul`: the epoch began anew, so Consul may have forgotten nodes that are running.
        """
        now = self._clock.now()
        self._epoch = epoch
        self._patience_until = Monotonic(now + 3 * self._beat_ttl) if fresh_consul else now
        for name, node in self._nodes.items():
            # What an earlier leadership of ours knew of it may be long over: others have led since.
            node.view = replace(views.unknown(name, now), presence=Presence.JOINING, api=node.view.api)
            node.catalog = node.name = node.poll = node.own = Witness(Says.UNKNOWN, now)
            node.following = node.far_clock = None
            self._nodes[name] = node
        self._wishes_known.clear()
        self._changed("leading")
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch_catalog(tasks), name="watch agents")
            tasks.create_task(self._watch_joined(), name="watch joined nodes")
            tasks.create_task(self._watch_locks(session), name="watch node locks")
            tasks.create_task(self._watch_wishes(), name="watch what people want of nodes")
            tasks.create_task(self._ask_about_unheard(), name="ask Consul about nodes that were never heard")

    def consul_was_away(self) -> None:
        """Consul may have started again since: the checks it shows need not have had their beat yet (DESIGN §6)."""
        self._beats_due_until = Monotonic(self._clock.now() + 2 * self._beat_ttl)

    async def patience_over(self) -> None:
        """Returns once whatever Consul forgot has had its time to come back."""
        while (left := self._patience_until - self._clock.now()) > 0:
            await asyncio.sleep(left)

    async def _watch_catalog(self, tasks: asyncio.TaskGroup) -> None:
        await self._wishes_known.wait()
        follower = Follower(self._cluster, self._epoch, api=self._api, clock=self._clock, changed=self._changed)
        index = 0
        while True:
            try:
                index, entries = await self._consul.watch_service(keys.AGENT_SERVICE, self._cluster, index, WATCH)
            except TdieError as error:
                index = 0
                self._consul_away(error)
                await asyncio.sleep(AGAIN)
                continue
            self._catalog(entries)
            for node in self._nodes.values():
                if node.view.api and (node.following is None or node.following.done()):
                    node.following = tasks.create_task(follower.follow(node), name=f"follow {node.view.name}")

    def _consul_away(self, error: TdieError) -> None:
        """While Consul cannot be read, and for 2×TTL after, its silence about a node proves nothing."""
        now = self._clock.now()
        self._patience_until = Monotonic(now + 2 * self._beat_ttl)
        self.consul_was_away()
        for node in self._nodes.values():
            node.catalog = node.catalog.turn(Says.UNKNOWN, now, str(error))
        self._changed("consul")

    def _catalog(self, entries: tuple[ServiceHealth, ...]) -> None:
        now = self._clock.now()
        seen: set[str] = set()
        for entry in entries:
            name = entry.meta.get(keys.NODE_META, "")
            if not name or name in seen:
                continue
            seen.add(name)
            node = self._node(name, now)
            node.joined = True
            node.shown = entry.meta.get(keys.REPLICAS_META) == "shown"
            node.view = replace(node.view, api=entry.meta.get(keys.API_META, ""))
            says = Says.UP if entry.passing else Says.DOWN
            self._consul_says(node, says, "" if entry.passing else "its check in Consul is critical")
        for name, node in self._nodes.items():
            if name not in seen:
                patient = now < self._patience_until and node.catalog.says is not Says.DOWN
                says = Says.UNKNOWN if patient else Says.DOWN
                node.shown = False
                self._consul_says(node, says, "it is not in Consul's catalog")
        self._changed("consul")

    def _consul_says(self, node: Followed, says: Says, detail: str) -> None:
        before, node.catalog = node.catalog, node.catalog.turn(says, self._clock.now(), detail)
        node.ask_if_missed(before, node.catalog)

    async def _watch_joined(self) -> None:
        """Which nodes ever joined: their identity key stays when they go, and its session ends."""
        async for entries in keys_below(self._consul, keys.nodes(self._cluster)):
            now = self._clock.now()
            for name in entries:
                self._node(name, now).joined = True
            for name, node in self._nodes.items():
                held = name in entries and bool(entries[name].session)
                before, node.name = (
                    node.name,
                    node.name.turn(
                        Says.UP if held else Says.DOWN,
                        now,
                        "" if held else "it does not hold its name in Consul any more",
                    ),
                )
                node.ask_if_missed(before, node.name)
            self._changed("consul")

    async def _watch_locks(self, session: str) -> None:
        async for entries in keys_below(self._consul, keys.node_locks(self._cluster)):
            held = {name: _holder(e) for name, e in entries.items() if e.session and e.session != session}
            if held != self._locks:
                self._locks = held
                self._changed("consul")

    async def _watch_wishes(self) -> None:
        known: dict[str, bytes] = {}
        self._wishes.clear()  # an earlier leadership of ours may have missed that one was taken back
        async for entries in keys_below(self._consul, keys.record(self._cluster, "nodes") + "/"):
            written = {name: entry.value for name, entry in entries.items()}
            if written == known:
                self._wishes_known.set()
                continue
            wall, now = self._clock.wall(), self._clock.now()
            for name, value in written.items():
                if known.get(name) != value:
                    self._wishes[name] = wishes.read(value, wall, now)
            for name in known.keys() - written.keys():
                del self._wishes[name]
            known = written
            self._wishes_known.set()
            self._changed("consul")

    async def _ask_about_unheard(self) -> None:
        """What runs on a node that is in the catalog but never answered us is shown there: the rest may start elsewhere."""
        while True:
            await asyncio.sleep(UNHEARD)
            if not any(node.unread for node in self._nodes.values()):
                continue
            try:
                _, checks = await self._consul.watch_checks(self._cluster, 0, 0.0)
            except TdieError as error:
                log.warning("cannot ask Consul what runs on nodes that do not answer", error=str(error))
                continue
            found = keys.replicas_by_node(self._cluster, (check.service_id for check in checks))
            for name, node in self._nodes.items():
                if node.unread:
                    node.read(frozenset(replica for replica in found.get(name, ()) if not is_by_hand(replica)))
                    self._changed("consul")

    # ------------------------------------------------------------------------------------------- for the loop

    def expiry(self, name: str, seconds: float) -> Expiry:
        """So many seconds from now, on the node's own clock. Raises Waiting when it has told nothing yet."""
        clock = self._nodes[name].far_clock
        if clock is None:
            raise Waiting("its clock has not been read yet", where=name)
        return clock.after(seconds, self._clock.now())

    def sent(self, name: str, assignment: Assignment) -> None:
        """The node has been sent this."""
        node = self._nodes[name]
        node.view = views.sent_view(node.view, assignment)
        self.version += 1

    def doubt(self, name: str, error: str) -> None:
        """A send may or may not have arrived: nothing more is planned for the node until it has said what is in force."""
        node = self._nodes[name]
        node.reclaim = True
        node.poll = node.poll.turn(
            Says.UNKNOWN, self._clock.now(), f"whether it has what it was sent last is not known: {error}"
        )
        if node.polling is not None:
            node.polling.cancel()
        self._changed("report")

    def snapshot(self, listed: Iterable[str], lost_after: float) -> tuple[ObservedState, Monotonic | None]:
        """The fleet now, and when time alone will change somebody's presence. The same object while nothing changed."""
        now = self._clock.now()
        names = frozenset(listed)
        key = (self.version, names, lost_after)
        if self._snapshot and self._snapshot[0] == key and (self._snapshot[2] is None or now < self._snapshot[2]):
            return self._snapshot[1], self._snapshot[2]
        nodes: dict[str, NodeView] = {}
        moments: list[Monotonic] = []
        moments += [moment for moment in (self._patience_until, self._beats_due_until) if now < moment]
        for name in sorted(names | self._nodes.keys()):
            node = self._node(name, now)
            found = self._finding(node, now, lost_after)
            if found.look_again_at is not None:
                moments.append(found.look_again_at)
            nodes[name] = self._viewed(node, found, name)
        unlisted = sorted(nodes.keys() - names) if names else []
        warnings = tuple(f"{name}: an agent of this name is registered but Git does not list it" for name in unlisted)
        observed = ObservedState(epoch=self._epoch, nodes=nodes, warnings=warnings)
        look_again = min(moments, default=None)
        self._snapshot = ((self.version, names, lost_after), observed, look_again)
        return observed, look_again

    def all_told(self, listed: Iterable[str]) -> bool:
        """Whether each of these nodes has told this leadership what it runs, and is where the next one finds it."""
        found = [self._nodes.get(name) for name in listed]
        return all(node is not None and node.told and node.catalog.says is Says.UP for node in found)

    def _finding(self, node: Followed, now: Monotonic, lost_after: float) -> Finding:
        catalog = consul_says(node.catalog, node.name) if node.poll.says is Says.DOWN else node.catalog
        joined, beats_due = node.joined or now < self._patience_until, now < self._beats_due_until
        return presence(joined, catalog, node.poll, now, lost_after, node.own, beats_due=beats_due)

    def _viewed(self, node: Followed, found: Finding, name: str) -> NodeView:
        """The node's view with its presence; the same object when nothing about it changed."""
        view, locked, wish = node.view, self._locks.get(name, ""), self._wishes.get(name)
        before = (view.presence, view.since, view.detail, view.vanishing, view.locked_by, view.wish)
        if before != (found.presence, found.since, found.detail, found.vanishing, locked, wish):
            node.view = replace(
                view, presence=found.presence, since=found.since, detail=found.detail, vanishing=found.vanishing,
                locked_by=locked, wish=wish,
            )  # fmt: skip
        return node.view

    def _node(self, name: str, now: Monotonic) -> Followed:
        if name not in self._nodes:
            unknown = Witness(Says.UNKNOWN, now)
            self._nodes[name] = Followed(views.unknown(name, now), unknown, unknown, unknown, unknown)
        return self._nodes[name]

    def _changed(self, reason: str) -> None:
        self.version += 1
        self._wake(reason)


def _holder(entry: KeyValue) -> str:
    """Who holds a node lock and why, for people; the value is JSON with `who`, `why`, `since`."""
    try:
        value = json.loads(entry.value)
        return f"{value['who']}: {value['why']}"
    except (ValueError, KeyError, TypeError):
        return entry.value.decode(errors="replace")[:200] or "somebody"
