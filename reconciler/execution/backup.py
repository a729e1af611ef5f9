"""What a cluster keeps in Consul, as one small document: the record and the epoch. Locks and presence are not in it.

A restore never lowers the epoch, and never moves a cluster to an older commit, unless the backup says that it was rolled back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agent import keys
from agent.clock import Clock
from agent.consul.protocol import Consul, TxnOp
from agent.errors import Invalid, Refused
from agent.wire import digest_of
from reconciler.execution import proven
from reconciler.execution.record import LIMIT

FORMAT = "tdie/backup/1"
COMMIT = "record/commit"
_KEY = re.compile(r"record/[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did: keys written and deleted, and whether the commit in force stayed as it was."""

    written: int
    deleted: int
    commit_kept: bool
    epoch: int


async def collect(consul: Consul, cluster: str, clock: Clock) -> dict[str, Any]:
    """The backup of a cluster, as a JSON document."""
    prefix = keys.prefix(cluster)
    pairs = await consul.get_all(keys.record(cluster))
    epoch = await consul.get(keys.epoch(cluster))
    found = {pair.key.removeprefix(prefix): json.loads(pair.value) for pair in pairs}
    return {
        "format": FORMAT,
        "cluster": cluster,
        "at": f"{clock.wall():%Y-%m-%dT%H:%M:%SZ}",
        "epoch": int(epoch.value) if epoch else 0,
        "digest": digest_of(found),
        "keys": found,
    }


def check(doc: Any, cluster: str) -> Mapping[str, Any]:
    """The document, if it is a whole backup of this cluster.

    Raises Invalid (BACKUP_FORMAT, BACKUP_DAMAGED), Refused (BACKUP_OTHER_CLUSTER).
    """
    if not isinstance(doc, dict) or doc.get("format") != FORMAT:
        raise Invalid(f"this is not a backup that this version can read ({FORMAT})", code="BACKUP_FORMAT")
    if doc.get("cluster") != cluster:
        raise Refused(
            f"this is a backup of cluster '{doc.get('cluster')}', not of '{cluster}'", code="BACKUP_OTHER_CLUSTER"
        )
    found, epoch = doc.get("keys"), doc.get("epoch")
    if not isinstance(found, dict) or not isinstance(epoch, int) or isinstance(epoch, bool) or epoch < 0:
        raise Invalid("keys and epoch are missing, or of another type", code="BACKUP_FORMAT")
    for name, value in found.items():
        if not _KEY.fullmatch(name) or ".." in name:
            raise Invalid(f"'{name[:100]}' is no key of a record", code="BACKUP_FORMAT")
        if not isinstance(value, dict) or len(_data(value)) > LIMIT:
            raise Invalid(f"{name} is no value of a record", code="BACKUP_FORMAT")
    if doc.get("digest") != digest_of(found):
        raise Invalid("it was altered, or part of it is missing: its digest is another one", code="BACKUP_DAMAGED")
    return doc


async def restore(consul: Consul, cluster: str, doc: Mapping[str, Any], session: str | None) -> Restored:
    """The record is as in the backup. With the leader's `session` every write proves that it leads; without, nobody may lead.

    Refused (LEADER_THERE) when somebody leads and no session is given.
    """
    proof = await _proof(consul, cluster, session)
    prefix = keys.prefix(cluster)
    there = {pair.key.removeprefix(prefix) for pair in await consul.get_all(keys.record(cluster))}
    wanted: dict[str, Any] = dict(doc["keys"])
    kept = COMMIT in there and "rollback" not in wanted.get(COMMIT, {})
    if kept:
        wanted.pop(COMMIT, None)
    gone = sorted(there - wanted.keys() - {COMMIT})
    # The commit goes last: whoever leads next then finds everything that belongs to it.
    names = sorted(wanted, key=lambda name: (name == COMMIT, name))
    ops = [TxnOp("delete", prefix + name) for name in gone]
    ops += [TxnOp("set", prefix + name, _data(wanted[name])) for name in names]
    await proven.write(consul, proof, ops)
    epoch = await _raise_epoch(consul, cluster, int(doc["epoch"]), proof)
    return Restored(len(wanted), len(gone), kept, epoch)


async def _proof(consul: Consul, cluster: str, session: str | None) -> TxnOp:
    """An operation that fails, and a whole transaction with it, once somebody else leads."""
    if session is not None:
        return proven.leads(cluster, session)
    key = keys.leader(cluster)
    held = await consul.get(key)
    if held is not None and held.session is not None:
        raise Refused("a controller leads", code="LEADER_THERE", hint="restore through it")
    if held is None:
        return TxnOp("check-not-exists", key)
    return TxnOp("check-index", key, index=held.modify_index)


async def _raise_epoch(consul: Consul, cluster: str, at_least: int, proof: TxnOp) -> int:
    """The epoch is at least this afterwards; it is never lowered."""
    entry = await consul.get(keys.epoch(cluster))
    stored = int(entry.value) if entry else 0
    if stored >= at_least:
        return stored
    ops = [TxnOp("cas", keys.epoch(cluster), str(at_least).encode(), index=entry.modify_index if entry else 0)]
    if entry is None:  # whoever leads next must know that this Consul is new
        ops.append(TxnOp("set", keys.fresh(cluster), b"{}"))
    await proven.write(consul, proof, ops)
    return at_least


def _data(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
