"""Options that say which cluster a command speaks to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

Cluster = Annotated[str | None, Parameter(help="Cluster name; needed when one Consul holds several.")]
ConsulAddress = Annotated[str | None, Parameter(name="--consul", help="Consul's HTTP address, host:port.")]
TokenFile = Annotated[Path | None, Parameter(help="File with the token for the controller (else TDIE_TOKEN_FILE).")]
