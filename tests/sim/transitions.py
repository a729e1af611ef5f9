"""The transitions of `transitions.txt`, and people who play their scripts as people do."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from agent import keys
from agent.errors import Missing, Waiting
from reconciler.execution.proven import NotLeading
from reconciler.simulation.observer import Observer
from reconciler.simulation.script import Stage, commands
from reconciler.simulation.world import CLUSTER
from tests.sim.points import SteppedWorld

TRANSITIONS = Path(__file__).with_name("transitions.txt")
ALONE = "at any moment, and nothing else"
TIMED = "then, at given times"
PATIENCE = 150  # seconds for which a person tries again while nobody leads, or who leads does not see the need yet
ALLOWED = {  # what people ask for by these words, and the observer's promise that histories keep without them
    "rebalance gradual": "moved only when lost or told to",
    "auto revert": "never back to an older commit",
    "rollback": "never back to an older commit",
}


@dataclass(frozen=True, slots=True)
class Transition:
    """What was there, what happens, and what may happen at any moment of it."""

    name: str
    before: tuple[str, ...]
    during: tuple[str, ...]
    meanwhile: tuple[str, ...]
    timed: bool  # its lines come whatever trouble there was, so that only the end counts
    alone: bool  # nothing crashes


@cache
def transitions() -> dict[str, Transition]:
    """All of them, by name."""
    found = {}
    for block in TRANSITIONS.read_text(encoding="utf-8").split("\n== ")[1:]:
        name, _, text = block.partition("\n")
        parts = re.split(r"^-- ?(.*)$", text, flags=re.MULTILINE)
        lines = {
            title: tuple(line for _, line in commands(part))
            for title, part in zip(["", *parts[1::2]], parts[::2], strict=True)
        }
        timed = lines.get(TIMED, ())
        alone = lines.get(ALONE, ())
        meanwhile = alone or lines.get("at any moment", ())
        found[name] = Transition(name, lines[""], timed or lines["then"], meanwhile, bool(timed), bool(alone))
    return found


class Story(Stage):
    """A script that its observer is told of, and whose people try again while nobody leads."""

    def __init__(self, world: SteppedWorld, observer: Observer) -> None:
        super().__init__(world)
        self.observer = observer
        self.allows: set[str] = set()

    async def do(self, number: int, text: str) -> str:
        truth = self.observer.truth
        if text.startswith("drain"):
            truth.asked.add(text.split()[1])
        if text == "confirm prune":
            truth.confirmed |= truth.commits.keys()
        if text.startswith("tamper"):
            self.observer.meddled(text.split()[1])
        if text.startswith("revoke"):
            for replica in self.world.nodes[text.split()[1]].machine.rows:
                self.observer.meddled(replica)
        self.allows |= {promise for word, promise in ALLOWED.items() if word in text}
        tried = False
        for _ in range(PATIENCE):
            try:
                if self._can_be_done(text):
                    tried = True
                    return await super().do(number, text)
                if tried and self._is_written(text):
                    return ""  # it was done, and the answer was lost
            except (Waiting, NotLeading):
                pass  # whoever leads does not any more
            except Missing:
                if text.startswith("resume"):
                    return ""
                raise
            await asyncio.sleep(1.0)
        return f"'{text}' cannot be done"

    def _is_written(self, text: str) -> bool:
        return keys.record(CLUSTER, f"confirmed-{text.split()[1]}") in self.world.store.entries

    def _can_be_done(self, text: str) -> bool:
        """People confirm what they are shown."""
        leader = self.world.leader()
        plan = leader.board.plan if leader is not None else None
        return not text.startswith("confirm") or bool(
            plan and (plan.prune_digest if "prune" in text else plan.lost_digest)
        )
