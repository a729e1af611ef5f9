"""Since when each replica is ordered here as it is: what tells a rollout that moves from one that does not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from agent.wire import Assignment


@dataclass(frozen=True, slots=True)
class Ordered:
    """Spec hash and boot-clock seconds by replica, within one boot of this machine."""

    boot_id: str = ""
    specs: Mapping[str, tuple[str, float]] = field(default_factory=dict)

    def in_boot(self, boot_id: str, now: float) -> Ordered:
        """The same in the present boot: after a reboot nothing has had any time yet."""
        if self.boot_id == boot_id:
            return self
        return Ordered(boot_id, {replica: (spec, now) for replica, (spec, _) in self.specs.items()})

    def taking(self, assignment: Assignment | None, now: float) -> Ordered:
        """After an assignment was accepted: another spec counts from now, the same one from when it came."""
        orders = assignment.replicas if assignment is not None else ()
        specs = {}
        for order in orders:
            known = self.specs.get(order.replica)
            specs[order.replica] = known if known and known[0] == order.spec_hash else (order.spec_hash, now)
        return Ordered(self.boot_id, specs)

    def as_text(self) -> str:
        """As JSON, for the ledger."""
        return json.dumps({"boot_id": self.boot_id, "specs": self.specs}, separators=(",", ":"))


def ordered_from(text: str) -> Ordered:
    """The value that was written as this text. ValueError for anything else."""
    if not text:
        return Ordered()
    try:
        held = json.loads(text)
        specs = {str(replica): (str(spec), float(since)) for replica, (spec, since) in held["specs"].items()}
        return Ordered(str(held["boot_id"]), specs)
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"'ordered' is no such mapping: {error}") from error
