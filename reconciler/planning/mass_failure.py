"""So many nodes lost at once that the fault is likely ours: nothing is moved until a person says so, and then one node after the
other (FAULTS row 26)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agent.clock import Monotonic
from reconciler.model.desired import FailoverPolicy
from reconciler.model.observed import Confirmed
from reconciler.planning.explain import counted
from reconciler.planning.ids import digest_of_changes

TOGETHER = 60.0  # seconds within which losses count as one
PACE = 10.0  # seconds between the moves of one lost node and those of the next


@dataclass(frozen=True, slots=True)
class MassFailure:
    """Nodes that were lost together, and since when a person has confirmed that they are gone."""

    nodes: tuple[str, ...]
    listed: int  # nodes in Git
    confirmed_at: Monotonic | None = None

    @property
    def digest(self) -> str:
        """What a person confirms: that these nodes are gone, and no others."""
        return digest_of_changes(self.nodes)

    def why_wait(self, node: str, now: Monotonic) -> tuple[str, Monotonic | None]:
        """Why a replica of this lost node is not moved now, and until when; an empty text if it is. Of an unknown node: last."""
        gone = f"{len(self.nodes)} of {counted(self.listed, 'node')} lost together"
        if self.confirmed_at is None:
            return f"{gone}: nothing is moved until they return, or `tdie apply --confirm-lost`", None
        number = self.nodes.index(node) if node in self.nodes else len(self.nodes)
        until = Monotonic(self.confirmed_at + PACE * number)
        return ("", None) if now >= until else (f"{gone}: they are moved one each {PACE:g} s", until)


def mass_failure(
    lost: Mapping[str, Monotonic], failover: FailoverPolicy, listed_nodes: int, confirmed: Confirmed
) -> MassFailure | None:
    """The nodes that were lost within a minute of each other, if they are too many; `lost` says since when.

    Those count already that are about to be: the first are not moved before it is known how many follow. Losses that are further
    apart are ones that the cluster has had time to answer.
    """
    most = max(failover.mass_at_least, failover.mass_fraction * listed_nodes)
    together: set[str] = set()
    for begin in lost.values():
        window = {name for name, at in lost.items() if begin <= at <= begin + TOGETHER}
        if len(window) >= most:
            together |= window
    if not together:
        return None
    found = MassFailure(tuple(sorted(together)), listed_nodes)
    return MassFailure(found.nodes, listed_nodes, confirmed.at) if confirmed.digest == found.digest else found
