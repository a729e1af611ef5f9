"""Restart now, later or never: a pure function of past crashes and now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.keeper.protocol import HostOrder


@dataclass(frozen=True, slots=True)
class Restart:
    """Start again at `at` (seconds on the clock of the crashes; not later than now means at once)."""

    at: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Do not start again; `reason` is for people."""

    reason: str


def counted(crashes: Sequence[float], now: float, interval: float) -> tuple[float, ...]:
    """The crashes that still count: those within the last `interval` seconds, oldest first."""
    return tuple(sorted(crash for crash in crashes if now - crash < interval))


def after_crash(crashes: Sequence[float], now: float, order: HostOrder) -> Restart | GiveUp:
    """What follows the last of these crashes: the first restart at once, later ones after the delay.

    `attempts` restarts are made within `interval`; then `fail` gives up, and `delay` waits until the oldest counted crash has
    left the interval.
    """
    recent = counted(crashes, now, order.restart_interval)
    if len(recent) > order.restart_attempts:
        if order.restart_mode == "fail" or not recent:
            return GiveUp(f"{len(recent)} crashes within {order.restart_interval:g} s")
        return Restart(max(now + order.restart_delay, recent[0] + order.restart_interval))
    return Restart(now if len(recent) <= 1 else now + order.restart_delay)
