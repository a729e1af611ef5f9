"""Commands about what lives in Consul: backup, restore."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from agent.clock import SystemClock
from agent.consul.client import ConsulClient
from agent.errors import Invalid, Waiting
from reconciler.cli.asking import agreed
from reconciler.cli.main import app
from reconciler.cli.options import HERE, At
from reconciler.cli.out import emit, note, say
from reconciler.connect import Spot, leader, only_cluster
from reconciler.execution import backup as backups


@app.command
def backup(
    *,
    out: Path | None = None,
    at: At = HERE,
) -> int:
    """What the cluster keeps in Consul, as a JSON document: the commit in force, history, approvals, wishes for nodes, epoch.

    What runs needs no backup: agents know it. Git is its own backup.

    Parameters
    ----------
    out
        Write it to this file.
    """
    where = at.spot()
    try:
        with leader(where) as master:
            doc: dict[str, Any] = master.get("/backup")
    except Waiting as error:
        if error.code != "NO_LEADER":
            raise
        note("no controller leads: read from Consul itself")
        doc = asyncio.run(_collect(where))
    emit(json.dumps(doc, indent=1, ensure_ascii=False), out)
    if out is not None:
        say(f"{len(doc['keys'])} key(s) of cluster {doc['cluster']}, epoch {doc['epoch']}, in {out}")
    return 0


@app.command
def restore(
    file: Path,
    *,
    yes: Annotated[bool, Parameter(name=["--yes", "-y"], negative=())] = False,
    at: At = HERE,
) -> int:
    """Bring back what 'tdie backup' saved, after Consul lost its data or went back to an old snapshot.

    Refused for a backup of another cluster. The epoch is never lowered, and the commit in force stays unless there is none or the
    backup says that the cluster was rolled back. What runs goes on; the leader then leads anew.

    Parameters
    ----------
    file
        A backup.
    yes
        Do not ask.
    """
    try:
        doc = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Invalid("is no JSON document", code="BACKUP_FORMAT", where=str(file)) from error
    where = at.spot()
    named = where.cluster or (doc.get("cluster") if isinstance(doc, dict) else None) or ""
    where = Spot(named, where.consul, where.token_file)
    backups.check(doc, named)
    say(f"{len(doc['keys'])} key(s) of cluster {doc['cluster']} as of {doc['at']}, epoch {doc['epoch']}")
    if not yes and not agreed("restore"):
        note("nothing was restored")
        return 1
    try:
        with leader(where) as master:
            done: dict[str, Any] = master.post("/restore", doc)
    except Waiting as error:
        if error.code != "NO_LEADER":
            raise
        note("no controller leads: written to Consul itself")
        done = asyncio.run(_restore(where, doc))
    kept = "; the commit in force stays" if done["commit_kept"] else ""
    say(f"{done['written']} key(s) written, {done['deleted']} deleted, epoch {done['epoch']}{kept}")
    return 0


async def _collect(where: Spot) -> dict[str, Any]:
    consul = ConsulClient.from_environ(os.environ, address=where.consul)
    try:
        return await backups.collect(consul, where.cluster or await only_cluster(consul), SystemClock())
    finally:
        await consul.close()


async def _restore(where: Spot, doc: Any) -> dict[str, Any]:
    consul = ConsulClient.from_environ(os.environ, address=where.consul)
    try:
        done = await backups.restore(consul, str(where.cluster), doc, None)
    finally:
        await consul.close()
    return {"written": done.written, "deleted": done.deleted, "commit_kept": done.commit_kept, "epoch": done.epoch}
