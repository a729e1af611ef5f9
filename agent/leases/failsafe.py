"""Pure: how a replica may outlive its session while Consul is away: every node that could run it promises, each cycle, not to.

The nodes that could are those in the record on the lease's key; only the holder writes them, and no other node may take the lock.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

REFUSED = "FAILSAFE_REFUSED"  # a node that could run it has it, or is getting it
PROMISED = "PROMISED"  # this node promised the last holder not to start it yet
FORGET = 600.0  # seconds after which a node that Consul does not know any more is not asked


class Answer(Enum):
    """What came back from one node that was asked."""

    PROMISE = "promise"
    REFUSAL = "refusal"
    SILENCE = "silence"


def verdict(members: Iterable[str], node: str, answers: Mapping[str, Answer]) -> Answer:
    """What all answers of a cycle mean together: each other member has to promise, and one refusal ends it."""
    given = [answers.get(member, Answer.SILENCE) for member in members if member != node]
    if Answer.REFUSAL in given:
        return Answer.REFUSAL
    return Answer.PROMISE if all(answer is Answer.PROMISE for answer in given) else Answer.SILENCE


def lacking(answers: Mapping[str, Answer]) -> tuple[str, ...]:
    """Who did not promise, in order."""
    return tuple(sorted(name for name, answer in answers.items() if answer is not Answer.PROMISE))


def may_acquire(eligible: Mapping[str, str], node: str) -> bool:
    """Whether a node may take a lock whose last holder, perhaps alive, wrote these nodes down; with none it was no failsafe one."""
    return not eligible or node in eligible


@dataclass(frozen=True, slots=True)
class Promise:
    """Not to start a replica before `until` on the clock of one boot."""

    until: float
    seconds: float
    boot: str
    holder: str = ""  # the node that it was given to; empty when that is not known


@dataclass(frozen=True, slots=True)
class Kept:
    """What a holder remembers of a lease that may outlive its session: who must agree, and for which token that was written."""

    token: tuple[int, int]
    members: Mapping[str, str]  # node → its API


@dataclass(frozen=True, slots=True)
class Book:
    """All that a node has promised, and whom it has to ask itself; by replica."""

    promises: Mapping[str, Promise]
    kept: Mapping[str, Kept]

    def promise(self, replica: str, seconds: float, now: float, boot: str, holder: str) -> Book:
        """With one more promise; what was promised for longer stays."""
        before = self.promises.get(replica)
        if before is not None and before.until >= now + seconds:
            return self
        current = {name: given for name, given in self.promises.items() if given.until > now}
        return replace(self, promises={**current, replica: Promise(now + seconds, seconds, boot, holder)})

    def given_to(self, replica: str, now: float) -> str:
        """The node that may run it until a promise of this one ends; empty if there is none."""
        given = self.promises.get(replica)
        return given.holder if given is not None and given.until > now else ""

    def until(self, replica: str) -> float:
        """Before this the replica may not be started here."""
        given = self.promises.get(replica)
        return given.until if given is not None else 0.0

    def keep(self, replica: str, kept: Kept | None) -> Book:
        """With these nodes to ask for a replica, or with none."""
        others = {name: other for name, other in self.kept.items() if name != replica}
        return replace(self, kept=others if kept is None else {**others, replica: kept})

    def in_boot(self, boot: str, now: float) -> Book:
        """As it holds in this boot: the clock of another one means nothing now, so what was promised then counts anew in full."""
        return replace(
            self,
            promises={
                replica: given if given.boot == boot else replace(given, until=now + given.seconds, boot=boot)
                for replica, given in self.promises.items()
            },
        )

    def encode(self) -> str:
        promises = {
            name: [given.until, given.seconds, given.boot, given.holder]
            for name, given in sorted(self.promises.items())
        }
        kept = {name: [list(held.token), dict(held.members)] for name, held in sorted(self.kept.items())}
        return json.dumps({"promises": promises, "kept": kept})


BLANK = Book({}, {})


def read_book(text: str) -> Book:
    """The book of an earlier life; what makes no sense promises nothing. A new holder waits longer than T anyway then."""
    try:
        raw = json.loads(text) if text else {"promises": {}, "kept": {}}
        promises = {
            str(name): Promise(float(until), float(seconds), str(boot), *map(str, holder))
            for name, (until, seconds, boot, *holder) in raw["promises"].items()
        }
        kept = {
            str(name): Kept((int(epoch), int(index)), members_of(members))
            for name, ((epoch, index), members) in raw["kept"].items()
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        return BLANK
    return Book(promises, kept)


def members_of(raw: object) -> Mapping[str, str]:
    """Nodes and their APIs as a record spells them. Raises TypeError when that makes no sense."""
    if not isinstance(raw, dict) or not all(
        isinstance(name, str) and isinstance(api, str) for name, api in raw.items()
    ):
        raise TypeError("not a mapping of nodes to addresses")
    return dict(sorted(raw.items()))


@dataclass(frozen=True, slots=True)
class Seen:
    """A node as Consul listed it last."""

    api: str
    at: float


def listed(before: Mapping[str, Seen], found: Mapping[str, str], now: float) -> dict[str, Seen]:
    """The nodes to count with: those in Consul's catalog, and for a while those that were; an empty catalog means nothing."""
    lately = {name: seen for name, seen in before.items() if now - seen.at < FORGET}
    return {**lately, **{name: Seen(api, now) for name, api in found.items()}}
