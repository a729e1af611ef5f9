"""Options that say which cluster a command speaks to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from reconciler.client import MasterClient
    from reconciler.connect import Spot


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
        from reconciler.connect import leader  # only commands that ask pay for the network libraries

        return leader(self.spot())

    def spot(self) -> Spot:
        """Where it is looked for."""
        from reconciler.connect import spot

        return spot(self.cluster, self.consul, self.token_file)


HERE = At()
