"""Pure: what two witnesses (Consul's catalog, our own long poll) together say of a node (DESIGN §6, Lost nodes)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from agent.clock import Monotonic
from reconciler.model.observed import Presence


class Says(StrEnum):
    UNKNOWN = "unknown"  # nothing heard yet, or what it says does not count now
    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Witness:
    """What one witness says of a node, and since when."""

    says: Says
    since: Monotonic
    detail: str = ""

    def turn(self, says: Says, now: Monotonic, detail: str = "") -> Witness:
        """The witness after it said this: `since` moves only when its word changed."""
        if says == self.says:
            return self if detail == self.detail else Witness(says, self.since, detail)
        return Witness(says, now, detail)


def consul_says(catalog: Witness, name: Witness) -> Witness:
    """What Consul says of a node that does not answer: by its check, and by its hold on its name.

    A check turns critical where it is registered, on the node's own machine, or when the servers miss that machine's Consul agent;
    a machine that was cut off within seconds of their losing their data is known to them only by what it registered, and its check
    passes for ever. The session that holds its name is ended by the servers.
    """
    if catalog.says is Says.UP and name.says is Says.DOWN:
        return Witness(Says.DOWN, Monotonic(max(catalog.since, name.since)), name.detail)
    return catalog


@dataclass(frozen=True, slots=True)
class Finding:
    """A node's presence with its reason; `look_again_at` is when time alone would change it."""

    presence: Presence
    since: Monotonic
    detail: str = ""
    look_again_at: Monotonic | None = None
    vanishing: bool = False  # both witnesses miss it, but not for long enough yet to call it lost


def presence(
    joined: bool,
    catalog: Witness,
    poll: Witness,
    now: Monotonic,
    lost_after: float,
    own: Witness | None = None,
    *,
    beats_due: bool = False,
) -> Finding:
    """Conclude from both witnesses. Only their agreement for `lost_after` seconds makes a node LOST.

    `joined` is False when no agent of that name ever registered, as far as anybody can know. `own` is what a node that answers
    says of its own way to Consul: while the Consul agent on its machine is cut off, the catalog goes on showing it as it was.
    `beats_due`: Consul was away a moment ago; that it misses a node which answers may mean only that no beat has come yet.
    """
    if poll.says is Says.UP and (beats_due or catalog.says is not Says.DOWN):
        if own is None or own.says is not Says.DOWN:
            return Finding(Presence.ALIVE, poll.since)
        cut_off_at = Monotonic(own.since + lost_after)
        if now < cut_off_at:
            return Finding(Presence.ALIVE, poll.since, look_again_at=cut_off_at)
        return Finding(Presence.UNREACHABLE, own.since, f"answers, but {own.detail}")
    if not joined and catalog.says is not Says.UP:
        return Finding(Presence.ABSENT, catalog.since, "no agent of this name has joined yet")
    if poll.says is Says.DOWN and catalog.says is Says.DOWN:
        agreed = Monotonic(max(poll.since, catalog.since))
        lost_at = Monotonic(agreed + lost_after)
        if now >= lost_at:
            return Finding(Presence.LOST, agreed, f"{catalog.detail}; {poll.detail}")
        return Finding(Presence.UNREACHABLE, agreed, f"{catalog.detail}; {poll.detail}", lost_at, vanishing=True)
    if poll.says is Says.UP:
        return Finding(Presence.UNREACHABLE, catalog.since, f"answers, but {catalog.detail}")
    if poll.says is Says.DOWN:
        return Finding(Presence.UNREACHABLE, poll.since, poll.detail)
    return Finding(Presence.JOINING, catalog.since, poll.detail or "not claimed by this controller yet")
