"""Names for differences: the same difference has the same name in every plan, on every controller."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from reconciler.model.plan import Cause, Verdict


def change_id(
    *,
    replica: str,
    verdict: Verdict,
    cause: Cause,
    commit: str,
    node: str,
    from_node: str = "",
    from_hash: str = "",
    to_hash: str = "",
) -> str:
    """12 hex digits that stay while the difference does."""
    parts = (replica, verdict.value, from_hash, to_hash, from_node, node, cause.value, commit)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def digest_of_changes(ids: Iterable[str]) -> str:
    """16 hex digits over a set of change ids, whatever their order."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()[:16]
