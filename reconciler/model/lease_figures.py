"""Pure: the figures of leases that a Cluster document asks for."""

from __future__ import annotations

from agent.wire import FAST_LEASES, USUAL_LEASES, LeaseFigures
from reconciler.model.documents import Leases

PROFILES = {"default": USUAL_LEASES, "fast": FAST_LEASES}


def figures(asked: Leases) -> LeaseFigures:
    """The profile, with what is asked for otherwise."""
    given = {name: value for name in LeaseFigures.model_fields if (value := getattr(asked, name)) is not None}
    return PROFILES[asked.profile].model_copy(update=given)
