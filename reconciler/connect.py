"""Which cluster a command speaks to, and where its leader is."""

from __future__ import annotations

import asyncio
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent import keys
from agent.consul.address import Address
from agent.consul.client import ConsulClient
from agent.errors import Missing, TdieError, Waiting
from reconciler.client import MasterClient

STATE = Path(".tdie") / "up.json"


@dataclass(frozen=True, slots=True)
class Spot:
    """A cluster that can be asked: through this Consul, with this token."""

    cluster: str | None
    consul: Address
    token_file: Path | None


def local_state(start: Path | None = None) -> dict[str, Any] | None:
    """What `tdie up` wrote in this folder or one above it, when that is what the user stands in."""
    here = (start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            found: dict[str, Any] = json.loads((folder / STATE).read_text())
            return found
    return None


def spot(cluster: str | None, consul: str | None, token_file: Path | None) -> Spot:
    """Options first, then the environment, then a running `tdie up` of this folder, then Consul on this machine."""
    environ = os.environ
    state = {} if consul or environ.get("CONSUL_HTTP_ADDR") else (local_state() or {})
    named = token_file or _path(environ.get("TDIE_TOKEN_FILE")) or _path(state.get("tokenFile"))
    address = Address.from_environ(environ, consul or state.get("consul") or "")
    return Spot(cluster or environ.get("TDIE_CLUSTER") or state.get("cluster"), address, named)


def leader(where: Spot) -> MasterClient:
    """The leading controller's API, found through the value of `leader` in Consul."""
    return MasterClient(asyncio.run(_leader_api(where)), _token(where.token_file))


async def _leader_api(where: Spot) -> str:
    consul = ConsulClient.from_environ(os.environ, address=where.consul)
    try:
        cluster = where.cluster or await only_cluster(consul)
        entry = await consul.get(keys.leader(cluster))
    except Waiting as error:
        raise Waiting(
            error.detail, code=error.code, hint="is 'tdie up' running in this folder? else name Consul with --consul"
        ) from error
    finally:
        await consul.close()
    if entry is None or entry.session is None:
        raise Waiting(
            f"no controller leads cluster {cluster}", code="NO_LEADER", hint="start one: tdie up, or tdie controller"
        )
    return str(json.loads(entry.value)["api"])


async def only_cluster(consul: ConsulClient) -> str:
    found = sorted({e.key.split("/")[1] for e in await consul.get_all(keys.ROOT) if e.key.endswith("/leader")})
    if not found:
        raise Missing("no cluster in this Consul yet", code="NO_CLUSTER", hint="start one: tdie up, or tdie controller")
    if len(found) > 1:
        raise TdieError(f"this Consul holds {', '.join(found)}", code="WHICH_CLUSTER", hint="name one with --cluster")
    return found[0]


def _token(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise TdieError(f"cannot read the token file: {error.strerror}", code="TOKEN_FILE", where=str(file)) from error


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None
