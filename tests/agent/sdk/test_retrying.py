"""Attempts with pauses, and work that is carried through."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from agent.sdk import finish, pauses, retry


def test_pauses_grow_to_their_limit_and_are_never_longer() -> None:
    seen = list(itertools.islice(pauses(1.0, 10.0), 8))
    for pause, whole in zip(seen, (1, 2, 4, 8, 10, 10, 10, 10), strict=True):
        assert 0.8 * whole <= pause <= whole


async def test_retry_returns_what_finally_works() -> None:
    outcomes = iter([OSError("one"), OSError("two"), "done"])

    async def action() -> str:
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return str(outcome)

    assert await retry(action, on=OSError, first=0.001) == "done"


@pytest.mark.parametrize(
    ("limits", "expected"), [({"attempts": 3}, 3), ({"attempts": 0, "first": 5.0, "within": 1.0}, 1)]
)
async def test_the_last_error_comes_out(limits: dict[str, float], expected: int) -> None:
    calls = 0

    async def action() -> None:
        nonlocal calls
        calls += 1
        raise OSError(f"call {calls}")

    with pytest.raises(OSError, match=f"call {expected}"):
        await retry(action, **{"first": 0.001, **limits})  # type: ignore[arg-type]  # figures only


async def test_another_error_is_not_tried_again() -> None:
    async def action() -> None:
        raise ValueError("wrong for ever")

    with pytest.raises(ValueError, match="wrong for ever"):
        await asyncio.wait_for(retry(action, on=OSError, first=60), 5)


async def test_finished_work_survives_the_cancellation_of_its_caller() -> None:
    begun, go_on, steps = asyncio.Event(), asyncio.Event(), []

    async def work() -> None:
        begun.set()
        await go_on.wait()
        steps.append("done")

    caller = asyncio.create_task(finish(work()))
    await begun.wait()
    for _ in range(3):  # asked more than once
        caller.cancel()
        await asyncio.sleep(0)
    assert not caller.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert steps == ["done"]


async def test_finish_passes_results_and_errors_on() -> None:
    async def fails() -> None:
        raise OSError("no")

    assert await finish(asyncio.sleep(0, "x")) == "x"
    with pytest.raises(OSError, match="no"):
        await finish(fails())
