"""Commands that say 'not now' to the whole cluster or an instance, and 'yes' to a rewritten history: suspend, resume, accept."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from reconciler.cli.asking import who
from reconciler.cli.main import app
from reconciler.cli.options import HERE, At
from reconciler.cli.out import say


@app.command
def suspend(
    instance: str = "",
    *,
    reason: Annotated[str, Parameter(name=["--reason", "-r"], help="What others should know.")] = "",
    at: At = HERE,
) -> int:
    """Change nothing any more, in the whole cluster or of one instance: no commit, no healing, no moves. What runs goes on.

    Git and machines are still looked at, the plan shows what would be done, and 'tdie apply' or 'tdie approve' does it once.
    Hosts that crash are restarted by their nodes as ever.

    Parameters
    ----------
    instance
        Only this one.
    """
    with at.leader() as master:
        master.put("/suspend", {"who": who(), "why": reason, "instance": instance})
    what, command = (instance, f"tdie resume {instance}") if instance else ("the cluster", "tdie resume")
    say(f"{what} is suspended: nothing is changed; '{command}' ends that")
    return 0


@app.command
def resume(instance: str = "", *, at: At = HERE) -> int:
    """Go on after 'tdie suspend'.

    Parameters
    ----------
    instance
        The one that was suspended; without it the whole cluster.
    """
    with at.leader() as master:
        query = f"?instance={instance}" if instance else ""
        was = master.delete(f"/suspend{query}")["was"]
    say(f"resumed; until now {was}")
    return 0


@app.command
def accept(commit: str, *, at: At = HERE) -> int:
    """Let the tip of the branch be in force although its history was rewritten (GIT_NON_FF in 'tdie status').

    Parameters
    ----------
    commit
        The commit that is held, at least its first seven digits.
    """
    with at.leader() as master:
        accepted = master.post("/accept", {"commit": commit})["commit"]
    say(f"commit {accepted[:12]} is accepted; 'tdie status' shows how it goes")
    return 0
