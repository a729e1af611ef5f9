"""The variables of a host. Apart from what starts hosts, because each host has it in memory."""

from __future__ import annotations

import json
import os

from agent.keeper import linux
from agent.keeper.protocol import HostOrder

RESERVE = "TDIE_RESERVED"  # room in which a forked host writes its own markers, for /proc/PID/environ
ROOM = 1024
HANDED_DOWN = ("PATH", "LANG", "LC_ALL", "HOME", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")


def environment(order: HostOrder, launch: str, keeper: str) -> dict[str, str]:
    """What a host may know: a scrubbed base, the order's own variables, and the markers over both."""
    base = {name: os.environ[name] for name in HANDED_DOWN if name in os.environ}
    if order.python:
        base["PATH"] = f"{os.path.dirname(order.python)}:{base.get('PATH', os.defpath)}"
    markers = {
        linux.MARKER_HOST: launch,
        linux.MARKER_KEEPER: keeper,
        **({linux.MARKER_LEASE: order.lease.token} if order.lease else {}),
        "TDIE_REPLICA": order.replica,
        "TDIE_INSTANCE": order.instance,
        "TDIE_NODE": order.node,
        "TDIE_SPEC": order.spec_hash,
        "TDIE_RUNTIME": order.runtime,
    }
    more = {"TDIE_CORRELATION_ID": order.correlation_id} if order.correlation_id else {}
    if order.data:
        more["TDIE_DATA_DIR"] = order.data
    if order.bus:
        more["TDIE_BUS"] = order.bus
    if order.port:
        more["TDIE_PORT"] = str(order.port)
    if order.runtime == "exec":
        more["TDIE_SETTINGS"] = json.dumps(dict(order.component.settings), separators=(",", ":"), ensure_ascii=False)
    return {**markers, **base, **order.env, **more, **markers}
