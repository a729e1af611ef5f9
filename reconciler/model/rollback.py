"""That an earlier commit runs instead of the branch's tip, and what it must be remembered by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Rollback:
    """An earlier commit runs until a newer one than the quarantined ones appears in Git, or a person ends it."""

    to: str  # the commit that runs
    left: str  # the commit rolled back from
    reached: str  # the latest commit that was in force: history must go on from it
    quarantined: frozenset[str]  # never adopted while this lasts
    who: str
    why: str = ""
    at: str = ""  # ISO 8601, for people
    automatic: bool = False  # decided by `update.autoRevert`, not by a person

    def text(self) -> Mapping[str, Any]:
        """As JSON values."""
        return {
            "to": self.to,
            "from": self.left,
            "reached": self.reached,
            "quarantined": sorted(self.quarantined),
            "who": self.who,
            "why": self.why,
            "at": self.at,
            "automatic": self.automatic,
        }

    @staticmethod
    def read(value: Mapping[str, Any]) -> Rollback:
        """The same from JSON values."""
        return Rollback(
            to=str(value["to"]),
            left=str(value["from"]),
            reached=str(value["reached"]),
            quarantined=frozenset(map(str, value["quarantined"])),
            who=str(value["who"]),
            why=str(value["why"]),
            at=str(value["at"]),
            automatic=bool(value["automatic"]),
        )


def roll_back(
    before: Rollback | None,
    in_force: str,
    tip: str,
    to: str,
    *,
    who: str,
    why: str,
    at: str,
    automatic: bool = False,
) -> Rollback:
    """The rollback from what is in force to another commit; one that lasts already goes on under the new commit."""
    held = before.quarantined if before is not None else frozenset()
    return Rollback(
        to=to,
        left=in_force,
        reached=before.reached if before is not None else in_force,
        quarantined=(held | {in_force, tip}) - {to, ""},
        who=who,
        why=why,
        at=at,
        automatic=automatic,
    )
