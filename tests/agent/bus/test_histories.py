"""Seeded histories: three nodes publish and take while they are killed, cut off and misinformed. Nothing accepted is lost."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from agent.bus.lanes import Consumer
from agent.bus.table import Table
from agent.bus.values import Limits
from agent.errors import TdieError
from tests.agent.bus.world import ORDERS, World, story, until

NODES = ("a", "b", "c")
STEPS = 80


class History:
    """One history: what was accepted, and what was worked on."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.chance = world, random.Random(seed)
        self.accepted: set[str] = set()
        self.worked: list[tuple[str, str]] = []
        self.numbers = 0
        self.publishing: set[asyncio.Task[None]] = set()
        self.consumers: dict[tuple[str, str], Consumer] = {}

    async def begin(self) -> None:
        for name in NODES:
            await self.world.node(name)

    async def step(self) -> None:
        """Something happens."""
        action = self.chance.choice(
            (self.publish, self.publish, self.kill, self.join, self.leave, self.misinform, self.cut)
        )
        await action(self.chance.choice(NODES))
        await asyncio.sleep(self.chance.choice((0.0, 0.01, 0.1, 1.0)))

    async def publish(self, name: str) -> None:
        ids = [f"m{self.numbers + n}" for n in range(self.chance.randint(1, 6))]
        self.numbers += len(ids)
        task = asyncio.create_task(self._until_accepted(name, ids))
        self.publishing.add(task)
        task.add_done_callback(self.publishing.discard)

    async def _until_accepted(self, name: str, ids: list[str]) -> None:
        """As a host does: said again, under the same ids, until the agent that is there has accepted it."""
        while not set(ids) <= self.accepted:
            node = self.world.nodes[name]
            if not node.dead:
                await node.publish(*ids)
                if not node.dead:  # the answer arrives only then
                    self.accepted |= set(ids)
            await asyncio.sleep(0.3)

    async def kill(self, name: str) -> None:
        """kill -9 of an agent, which is started again."""
        old = self.world.nodes[name]
        self.worked += old.done
        await old.stop()
        self.consumers = {key: c for key, c in self.consumers.items() if key[0] != name}
        await asyncio.sleep(self.chance.choice((0.0, 0.5, 5.0)))
        await self.world.node(name)

    async def join(self, name: str) -> None:
        instance = self.chance.choice(("shop", "audit"))
        if (name, instance) not in self.consumers:
            self.consumers[name, instance] = self.world.nodes[name].consumer(instance, window=self.chance.randint(1, 4))

    async def leave(self, name: str) -> None:
        """kill -9 of a host, or an orderly stop."""
        for instance in ("shop", "audit"):
            if (consumer := self.consumers.pop((name, instance), None)) is not None:
                self.world.nodes[name].bus.leave(consumer, politely=self.chance.random() < 0.5)

    async def misinform(self, name: str) -> None:
        """Consul names any nodes, right or wrong."""
        for instance in ("shop", "audit"):
            self.world.where[instance] = [n for n in NODES if self.chance.random() < 0.5]

    async def cut(self, name: str) -> None:
        for group in (self.world.unreachable, self.world.no_answer):
            group.symmetric_difference_update({name} if self.chance.random() < 0.5 else ())
        self.world.answer_takes = self.chance.choice((0.01, 0.01, 2.0))

    async def heal(self) -> None:
        """All faults are over, and everything is worked on."""
        self.world.unreachable.clear()
        self.world.no_answer.clear()
        for name in NODES:
            await self.leave(name)
            self.world.nodes[name].bus.know(Table(dict(ORDERS)))
        for instance, name in (("shop", "a"), ("audit", "b")):
            self.world.where[instance] = [name]
            self.world.nodes[name].consumer(instance, window=10)
        await until(lambda: not self.publishing)
        await until(lambda: not any(node.left() for node in self.world.nodes.values()))
        for node in self.world.nodes.values():
            self.worked += node.done


@pytest.mark.parametrize("seed", range(int(os.environ.get("TDIE_HISTORIES", "30"))))
def test_nothing_accepted_is_lost(tmp_path: Path, seed: int) -> None:
    async def body(world: World) -> None:
        history = History(world, seed)
        await history.begin()
        for _ in range(STEPS):
            try:
                await history.step()
            except TdieError as error:
                raise AssertionError("a fault came out of the bus") from error
        await history.heal()
        assert len(history.accepted) == history.numbers > 15
        assert set(history.worked) == {(name, id) for id in history.accepted for name in ("shop", "audit")}
        assert len(history.worked) < 3 * len(set(history.worked))  # more than once now and then, and not for ever
        for node in world.nodes.values():
            assert (node.bus.room.count, node.bus.room.bytes, node.problems) == (0, 0, {})

    story(tmp_path, body, Limits(attempts=1000, away=0.2))
