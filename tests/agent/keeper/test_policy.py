"""Restart now, later or never: a table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agent.keeper.policy import GiveUp, Restart, after_crash
from agent.keeper.protocol import Code, HostOrder

ORDER = HostOrder("a.0", "a", "n", "s", "python", Code("p", "1.0.0", "d", "/"))


@pytest.mark.parametrize(
    ("crashes", "changed", "expected"),
    [
        ([100], {}, Restart(100)),  # the first one at once
        ([95, 100], {}, Restart(115)),
        ([90, 95, 100], {}, None),  # two attempts were made
        ([90, 95, 100], {"restart_interval": 6.0}, Restart(115)),  # the oldest does not count any more
        ([10, 100], {"restart_interval": 50.0}, Restart(100)),
        ([100], {"restart_attempts": 0}, None),
        ([90, 95, 100], {"restart_mode": "delay", "restart_interval": 600.0}, Restart(690)),
        (
            [90, 95, 100],
            {"restart_mode": "delay", "restart_interval": 12.0},
            Restart(115),
        ),  # never sooner than the delay
        ([100], {"restart_attempts": 0, "restart_mode": "delay", "restart_interval": 60.0}, Restart(160)),
    ],
)
def test_what_follows_a_crash(crashes: list[float], changed: dict[str, Any], expected: Restart | None) -> None:
    found = after_crash(crashes, 100, replace(ORDER, **changed))
    assert isinstance(found, GiveUp) if expected is None else found == expected
