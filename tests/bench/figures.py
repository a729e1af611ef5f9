"""How a bench prints: p50, p99, the target beside them, and whether it is met."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def percentiles(values: Sequence[float]) -> tuple[float, float]:
    """p50 and p99 of some measurements."""
    ordered = sorted(values)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, round(0.99 * (len(ordered) - 1)))]


def line(what: str, values: Sequence[float], unit: str, target: float | None = None) -> None:
    """One line: what, p50, p99, n, target and verdict by the median."""
    p50, p99 = percentiles(values)
    verdict = "" if target is None else f"   target ≤ {target:g} {unit}: {'met' if p50 <= target else 'MISSED'}"
    print(f"{what:<52} p50 {p50:>9.3f} {unit}  p99 {p99:>9.3f} {unit}  n={len(values)}{verdict}", flush=True)


def ratio(what: str, value: float, target: float) -> None:
    """One line for a ratio that should be at least `target`."""
    print(f"{what:<52} {value:>9.1f}×   target ≥ {target:g}×: {'met' if value >= target else 'MISSED'}", flush=True)
