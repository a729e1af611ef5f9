"""Code that is put together does what it did before."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

from agent.zygote import hot


def _counter(start: int) -> Callable[[], int]:
    def step() -> int:
        nonlocal start
        start += 1
        return start

    return step


class _Shape:
    def area(self, *, size: int = 2) -> int:
        return sum(n for n in [size] * size)


def _cold() -> str:
    return "cold"


def test_what_ran_is_moved_and_works_as_before() -> None:
    gc.unfreeze()  # a history played in this process before freezes what is there, and that is not listed any more
    tick = _counter(5)

    def work() -> Any:
        return _counter(1)(), tick(), _Shape().area()

    seen = hot.seen_by(work)
    assert {"_counter", "_counter.<locals>.step", "_Shape.area"} <= {code.co_qualname for code in seen}
    before = {function: function.__code__ for function in (_counter, tick, _Shape.area, _cold)}
    assert hot.gather(seen) >= 4
    for function, code in before.items():
        assert (function.__code__ is code) == (function is _cold)
        assert function.__code__ == code
    inner = [const for const in _counter.__code__.co_consts if const in seen]
    assert inner
    assert not any(const is old for const in inner for old in seen)  # what it defines is new too
    assert work() == (2, 7, 4)  # `tick` still has its own number


def test_nothing_is_noted_afterwards() -> None:
    seen = hot.seen_by(lambda: None)
    _cold()
    assert "_cold" not in {code.co_qualname for code in seen}
