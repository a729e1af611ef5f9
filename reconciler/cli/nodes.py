"""Commands about machines: cordon, drain, uncordon, lock, unlock."""

from __future__ import annotations

import time
from typing import Annotated, Any

from cyclopts import App, Parameter

from agent.errors import Waiting
from reconciler.cli.asking import who
from reconciler.cli.main import app
from reconciler.cli.options import HERE, At
from reconciler.cli.out import note, say
from reconciler.client import MasterClient
from reconciler.model.units import seconds

lock = App(name="lock", help="Say 'not now': nothing is changed there until it is unlocked.")
unlock = App(name="unlock", help="Take a lock away.")
app.command(lock)
app.command(unlock)

Reason = Annotated[str, Parameter(name=["--reason", "-r"], help="What others should know.")]
LOOK = 0.5  # seconds between looks at a node that is drained


@app.command
def cordon(
    name: str,
    *,
    reason: Reason = "",
    at: At = HERE,
) -> int:
    """Place nothing new on a node; what runs there goes on.

    Parameters
    ----------
    name
        Of the node.
    """
    with at.leader() as master:
        master.put(f"/nodes/{name}/cordon", {"who": who(), "why": reason})
    say(f"{name} takes nothing new; 'tdie uncordon {name}' takes that back")
    return 0


@app.command
def uncordon(name: str, *, at: At = HERE) -> int:
    """Let a node take new replicas again, after cordon or drain.

    Parameters
    ----------
    name
        Of the node.
    """
    with at.leader() as master:
        master.delete(f"/nodes/{name}/cordon")
    say(f"{name} takes new replicas again, if Git lists it and does not cordon it")
    return 0


@app.command
def drain(
    name: str,
    *,
    deadline: str | None = None,
    reason: Reason = "",
    wait: bool = True,
    at: At = HERE,
) -> int:
    """Empty a node: its replicas start elsewhere first, as carefully as in a rollout.

    Ends when nothing runs there any more (0). Interrupting the command does not end the draining; 'tdie uncordon' does.

    Parameters
    ----------
    name
        Of the node.
    deadline
        After this long (e.g. 30m) what is left is stopped, even without another place for it.
    wait
        Show how it goes until the node is empty.
    """
    within = None if deadline is None else seconds(deadline)
    with at.leader() as master:
        master.put(f"/nodes/{name}/cordon", {"who": who(), "why": reason, "drain": True, "within": within})
        if wait:
            _until_empty(master, name)
    say(f"{name} is empty" if wait else f"{name} is being drained; 'tdie explain {name}' shows how it goes")
    return 0


def _until_empty(master: MasterClient, name: str) -> None:
    last = ""
    while True:
        doc = master.get(f"/nodes/{name}")
        if doc["presence"] == "lost":
            raise Waiting(f"{name} is lost: {doc['detail']}", code="NODE_LOST")
        if not doc["replicas"] and doc["draining"]:
            return
        text = f"{name}: {doc['replicas']} replica(s) left{_why(master, name)}"
        if text != last:
            note(text)
            last = text
        time.sleep(LOOK)


def _why(master: MasterClient, name: str) -> str:
    """What the next one waits for."""
    changes: list[dict[str, Any]] = master.get("/status")["changes"]
    mine = [c for c in changes if name in (c["node"], c["fromNode"]) and c["hold"] is not None]
    return f"; {mine[0]['replica']} waits: {mine[0]['hold']['reason']} {mine[0]['hold']['detail']}" if mine else ""


@lock.command(name="node")
def lock_node(name: str, *, reason: Reason, at: At = HERE) -> int:
    """Have nothing changed on a node; what runs there goes on, and the plan says who holds it up.

    Parameters
    ----------
    name
        Of the node.
    """
    with at.leader() as master:
        master.put(f"/nodes/{name}/lock", {"who": who(), "why": reason})
    say(f"nothing is changed on {name}; 'tdie unlock node {name}' ends that")
    return 0


@unlock.command(name="node")
def unlock_node(name: str, *, at: At = HERE) -> int:
    """Take the lock of a node away, whoever took it.

    Parameters
    ----------
    name
        Of the node.
    """
    with at.leader() as master:
        held = master.delete(f"/nodes/{name}/lock")["heldBy"]
    say(f"{name} is unlocked (it was held by {held})" if held else f"{name} was not locked")
    return 0
