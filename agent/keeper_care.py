"""The keeper as a whole: what it says of itself, and the end of everything it keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from agent.errors import Waiting
from agent.keeper.protocol import SANDBOX_DEGRADED, Keeper
from agent.problems import NodeProblems
from agent.wire import ReplicaState

log = structlog.get_logger("agent")

KEEPER_LOOK = 15.0  # seconds between looks at what the keeper says of itself


async def watch_keeper(keeper: Keeper, problem: NodeProblems, limits_wanted: Callable[[], bool]) -> None:
    """What the keeper says of itself is a problem of this node while it lasts."""
    known: set[str] = set()
    while True:
        try:
            found = dict(await keeper.problems())
        except (
            Waiting
        ) as error:  # it is away, which who follows it says: what it said last stays true until it says otherwise
            log.debug("the keeper was not asked", error=str(error))
        else:
            if not limits_wanted():
                found.pop(SANDBOX_DEGRADED, None)  # nobody asked for limits: nothing is missing
            for code in known | found.keys():
                problem(code, found.get(code, ""))
            known = set(found)
        await asyncio.sleep(KEEPER_LOOK)


async def stop_all(keeper: Keeper, timeout: float) -> tuple[str, ...]:
    """Every host is stopped; what is still up is returned."""
    for row in await keeper.rows():
        if row.state not in (ReplicaState.STOPPED, ReplicaState.FAILED):
            await keeper.stop(row.replica)
    left: tuple[str, ...] = ()
    for _ in range(int(timeout / 0.05)):
        rows = await keeper.rows()
        left = tuple(r.replica for r in rows if r.state not in (ReplicaState.STOPPED, ReplicaState.FAILED))
        if not left:
            break
        await asyncio.sleep(0.05)
    for row in await keeper.rows():  # not stopped by somebody's hand: the next agent starts them again
        if row.replica not in left:
            await keeper.forget(row.replica)
    return left
