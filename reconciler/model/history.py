"""Pure: what ran since when, by which cause, and what became of it; and which entries a look at Git and fleet adds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from reconciler.model.rollback import Rollback

End = Literal["", "superseded", "rolled-back", "rejected"]
_LONGEST = 300  # characters of any text


@dataclass(frozen=True, slots=True)
class Entry:
    """One commit, while it was in force; or one that was rejected. Times are ISO 8601, UTC."""

    number: int
    commit: str
    subject: str = ""
    author: str = ""
    cause: Literal["commit", "rollback"] = "commit"
    who: str = ""  # who rolled back; else the author
    why: str = ""  # of a rollback; of a rejection the first problem
    since: str = ""
    until: str = ""  # empty: in force
    healthy: str = ""  # when nothing was left to do and everything was well, for the first time
    halted: str = ""  # why a rollout of it stopped, until it became healthy
    ended: End = ""

    @property
    def result(self) -> str:
        """One word for people: what became of it, or how it goes."""
        if self.ended in ("rejected", "rolled-back"):
            return self.ended.replace("-", " ")
        if self.healthy:
            return "healthy"
        if self.ended:
            return "superseded"
        return "halted" if self.halted else "changing"

    @property
    def good(self) -> bool:
        """Whether a rollback may go to it without being told so: it ran well, and nobody went back from it."""
        return bool(self.healthy) and self.ended in ("", "superseded")

    def text(self) -> Mapping[str, Any]:
        """As JSON values, without what is empty."""
        return {key: value for key, value in asdict(self).items() if value not in ("", None)}

    @staticmethod
    def read(value: Mapping[str, Any]) -> Entry:
        """The same from JSON values; what a later version has added is left out."""
        known = {field.name: value[field.name] for field in fields(Entry) if field.name in value}
        if not isinstance(known.pop("number", None), int) or not all(isinstance(text, str) for text in known.values()):
            raise TypeError("an entry of the history is a number and texts")
        return Entry(number=value["number"], **known)


Entries = tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a cycle knows that history is made of."""

    at: str
    commit: str = ""  # in force; empty: none
    subject: str = ""
    author: str = ""
    rollback: Rollback | None = None
    rejected: str = ""  # the tip that cannot be in force
    rejected_for: str = ""
    healthy: bool = False
    halted: str = ""


def bring_up(entries: Entries, seen: Seen, keep: int) -> Entries:
    """The entries as they should be now, the oldest first; the same object when they are."""
    found = _in_force(entries, seen)
    found = _rejected(found, seen)
    found = _gone_well(found, seen)
    return _kept(found, keep)


def current(entries: Entries) -> Entry | None:
    """The entry of the commit in force."""
    return next((entry for entry in reversed(entries) if not entry.ended), None)


def earlier(entries: Entries, than: str, without: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """Commits to roll back to from this one, the best first: those that ran well, the latest first, then the others that ran.

    A commit counts by what became of it last.
    """
    last: dict[str, Entry] = {}
    for entry in entries:
        if entry.ended != "rejected":
            last.pop(entry.commit, None)
            last[entry.commit] = entry
    usable = [e for e in reversed(last.values()) if e.commit != than and e.commit not in without]
    usable = [e for e in usable if e.ended != "rolled-back"]
    return tuple(e.commit for e in (*(e for e in usable if e.good), *(e for e in usable if not e.good)))


def _in_force(entries: Entries, seen: Seen) -> Entries:
    before = current(entries)
    if not seen.commit or (before is not None and before.commit == seen.commit):
        return entries
    back = seen.rollback
    if before is not None:
        left = back is not None and before.commit in back.quarantined
        closed = replace(before, until=seen.at, ended="rolled-back" if left else "superseded")
        entries = tuple(closed if entry is before else entry for entry in entries)
    added = Entry(
        number=_next(entries),
        commit=seen.commit,
        subject=_short(seen.subject),
        author=_short(seen.author),
        cause="commit" if back is None else "rollback",
        who=_short(seen.author if back is None else back.who),
        why="" if back is None else _short(back.why),
        since=seen.at,
    )
    return (*entries, added)


def _rejected(entries: Entries, seen: Seen) -> Entries:
    if not seen.rejected or any(e.commit == seen.rejected and e.ended == "rejected" for e in entries):
        return entries
    why = _short(seen.rejected_for)
    added = Entry(_next(entries), seen.rejected, why=why, since=seen.at, until=seen.at, ended="rejected")
    return (*entries, added)


def _gone_well(entries: Entries, seen: Seen) -> Entries:
    now = current(entries)
    if now is None or now.commit != seen.commit or now.healthy:
        return entries
    if seen.healthy:
        after = replace(now, healthy=seen.at, halted="")
    elif seen.halted and not now.halted:
        after = replace(now, halted=_short(seen.halted))
    else:
        return entries
    return tuple(after if entry is now else entry for entry in entries)


def _kept(entries: Entries, keep: int) -> Entries:
    """The latest `keep`, and in any case what is in force and the last good one before it: a rollback needs them."""
    if len(entries) <= keep:
        return entries
    now = current(entries)
    needed = {now.number} if now is not None else set()
    targets = earlier(entries, now.commit if now is not None else "")
    if targets:
        needed.add(max(entry.number for entry in entries if entry.commit == targets[0] and entry.ended != "rejected"))
    latest = {entry.number for entry in entries[-keep:]}
    return tuple(entry for entry in entries if entry.number in latest | needed)


def _next(entries: Entries) -> int:
    return entries[-1].number + 1 if entries else 1


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
