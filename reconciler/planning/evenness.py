"""How evenly package types share a node."""

from __future__ import annotations

from collections.abc import Iterable
from math import log


def evenness(counts: Iterable[int]) -> float:
    """Shannon's index over the natural log of the number of types, from 0 to 1; 0 for fewer than two types."""
    present = [count for count in counts if count > 0]
    if len(present) < 2:
        return 0.0
    total = sum(present)
    index = -sum(count / total * log(count / total) for count in present)
    return min(1.0, index / log(len(present)))
