"""Consul's servers of a world, and the trouble they can be in."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Protocol

from agent.clock import Monotonic
from agent.consul.embedded.store import Store
from reconciler.simulation import consul as troubles
from reconciler.simulation.consul import SimConsul
from reconciler.simulation.virtual import VirtualClock, later
from reconciler.simulation.watchers import Watcher

AFTERMATH = 60.0  # seconds after trouble in which what they said before may still have an effect


class Around(Protocol):
    """What the servers need of the world around them."""

    watcher: Watcher

    def clients(self) -> Iterable[SimConsul]:
        """Of all that run."""

    def apply_cuts(self) -> None:
        """Who reaches the servers has changed."""

    def forgotten(self) -> None:
        """What they say of who holds what may be wrong from now on."""


class Servers:
    """All of them together: no client can tell which it talks to, but by how old its answers are."""

    def __init__(self, store: Store, clock: VirtualClock, random: random.Random, around: Around) -> None:
        self._store, self._clock, self._random, self._around = store, clock, random, around
        self.away = False
        """Nobody reaches them."""
        self.latency = 0.0
        """Seconds that each way takes at most, when all is well."""
        self._disturbed_at = Monotonic(-1e9)
        self._disturbances = 0

    def disturbed(self, lately: float = AFTERMATH) -> bool:
        """Whether they are in trouble, or were in the last so many seconds."""
        return self._disturbances > 0 or self._clock.now() < self._disturbed_at + lately

    def vanish(self, away: bool) -> None:
        """Nobody reaches them any more, or everybody does again."""
        if away != self.away:
            self.away = away
            self._disturb(away)
        self._around.apply_cuts()

    def stop(self, stopped: bool) -> None:
        """They do not run, so that no session ends, or do so again and each session is good for another TTL."""
        self.vanish(stopped)
        if stopped:
            self._keep_sessions()

    def _keep_sessions(self) -> None:
        troubles.elected(self._store)
        if self.away:
            later(1.0, self._keep_sessions)

    def wipe(self) -> None:
        """They lost all their data, indexes begin anew, and whoever waits hears that they went away."""
        away = self.away
        self.vanish(True)
        self._around.watcher.forgets()
        troubles.wipe(self._store)
        self.vanish(away)
        self._disturb_now()

    def restore(self, saved: Store) -> None:
        """Their data are those of an earlier moment; who waits is answered with them."""
        self._around.watcher.forgets()
        troubles.restore(self._store, saved)
        self._disturb_now()
        for client in self._around.clients():
            client.wake()

    def lag(self, behind: bool) -> None:
        """Watches are answered by servers that have stopped hearing of changes, or by good ones again."""
        self._disturb(behind)
        for client in self._around.clients():
            client.behind = troubles.lagging(self._store) if behind and self._random.random() < 0.7 else None

    def elect(self) -> None:
        """Another of them leads: every session is good for another TTL."""
        troubles.elected(self._store)
        self._disturb_now()

    def slow(self, seconds: float) -> None:
        """What they are asked takes up to so long each way, and arrives also when nobody waits for it any more."""
        self._disturb(seconds > 0)
        for client in self._around.clients():
            client.slow = seconds or self.latency

    def lose_answers(self, lose: bool) -> None:
        """What they are asked is done, and some hear no answer."""
        self._disturb(lose)
        for client in self._around.clients():
            client.deaf = lose and self._random.random() < 0.5

    def _disturb(self, begins: bool) -> None:
        self._disturbances += 1 if begins else -1
        self._disturb_now()

    def _disturb_now(self) -> None:
        self._disturbed_at = self._clock.now()
        self._around.forgotten()
