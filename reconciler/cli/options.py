"""Options that say which cluster a command speaks to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from reconciler.client import MasterClient
from reconciler.connect import Spot, leader, spot


@Parameter(name="*")
@dataclass(frozen=True)
class At:
    """The cluster, as far as it was named; the rest is found (see `reconciler.connect.spot`)."""

    cluster: Annotated[str | None, Parameter(help="Cluster name; needed when one Consul holds several.")] = None
    consul: Annotated[str | None, Parameter(help="Consul's HTTP address, host:port.")] = None
    token_file: Annotated[
        Path | None, Parameter(help="File with the token for the controller (else TDIE_TOKEN_FILE).")
    ] = None

    def leader(self) -> MasterClient:
        """The API of the cluster's leader."""
        return leader(self.spot())

    def spot(self) -> Spot:
        """Where it is looked for."""
        return spot(self.cluster, self.consul, self.token_file)


HERE = At()
