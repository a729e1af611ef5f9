"""Refusals that carry a number the refused side needs."""

from __future__ import annotations

from agent.errors import Refused


class StaleLeader(Refused):
    """Somebody with a higher epoch commands this node, or sent something newer; `epoch` is the highest known there."""

    code = "STALE_LEADER"

    def __init__(self, detail: str, epoch: int) -> None:
        super().__init__(detail)
        self.epoch = epoch
