"""How a bench prints: p50, p99, the target beside them, and whether it is met."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def percentiles(values: Sequence[float]) -> tuple[float, float]:
    """p50 and p99 of some measurements."""
    ordered = sorted(values)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, round(0.99 * (len(ordered) - 1)))]


def line(
    what: str, values: Sequence[float], unit: str, target: float | None = None, target_p99: float | None = None
) -> None:
    """One line: what, p50, p99, n, targets and verdict: by the median, and by p99 where that has a target of its own."""
    p50, p99 = percentiles(values)
    verdict = ""
    if target is not None:
        met = p50 <= target and (target_p99 is None or p99 <= target_p99)
        also = "" if target_p99 is None else f", p99 ≤ {target_p99:g} {unit}"
        verdict = f"   target ≤ {target:g} {unit}{also}: {'met' if met else 'MISSED'}"
    print(f"{what:<52} p50 {p50:>9.3f} {unit}  p99 {p99:>9.3f} {unit}  n={len(values)}{verdict}", flush=True)


def ratio(what: str, value: float, target: float) -> None:
    """One line for a ratio that should be at least `target`."""
    print(f"{what:<52} {value:>9.1f}×   target ≥ {target:g}×: {'met' if value >= target else 'MISSED'}", flush=True)


def value(what: str, found: float, unit: str, target: float | None = None) -> None:
    """One line for a single measurement."""
    verdict = "" if target is None else f"   target ≤ {target:g} {unit}: {'met' if found <= target else 'MISSED'}"
    print(f"{what:<60} {found:>9.3f} {unit}{verdict}", flush=True)
