"""Commands about what was in force before: rollback, history."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from agent.errors import Invalid
from reconciler.cli import show
from reconciler.cli.asking import agreed, who
from reconciler.cli.main import app
from reconciler.cli.options import HERE, At
from reconciler.cli.out import Output, note, paint_plan, say, say_json


@app.command
def rollback(
    *,
    to: str | None = None,
    reason: Annotated[str, Parameter(name=["--reason", "-r"], help="What others should know.")] = "",
    cancel: Annotated[bool, Parameter(negative=())] = False,
    yes: Annotated[bool, Parameter(name=["--yes", "-y"], negative=())] = False,
    at: At = HERE,
) -> int:
    """Go back to the last commit that ran well, or to a named earlier one, without touching Git.

    Shows what that changes and asks. The commit that is left is quarantined: it does not come back by itself, only a newer
    commit in Git does. Windows, approvals (sync.mode: manual) and canaries do not hold a rollback up; prune limits do.

    Parameters
    ----------
    to
        An earlier commit, tag or revision (HEAD~2).
    cancel
        End the rollback that is in force: the tip of the branch runs again.
    yes
        Do not ask.
    """
    if cancel and (to is not None or reason):
        raise Invalid("--cancel goes alone", code="USAGE")
    with at.leader() as master:
        if cancel:
            ended = master.delete("/rollback")
            say(
                f"the rollback to {ended['to'][:8]} is over: the tip of the branch runs again; 'tdie status' shows how it goes"
            )
            return 0
        seen: dict[str, Any] = master.get("/rollback") if to is None else master.get("/rollback", to=to)
        say(f"from {seen['from'][:8]} {seen['fromSubject']}")
        say(f"to   {seen['to'][:8]} {seen['toSubject']}")
        say()
        say(paint_plan(seen["text"].rstrip("\n")))
        if not yes and not agreed("rollback"):
            note("nothing was rolled back")
            return 1
        body = {"to": seen["to"], "from": seen["from"], "who": who(), "why": reason}
        done = master.post("/rollback", body)
    say(
        f"commit {done['to'][:8]} is in force; {done['from'][:8]} is quarantined until a newer commit appears in Git"
        " ('tdie rollback --cancel' ends that); 'tdie status' shows how it goes"
    )
    return 0


@app.command
def history(*, output: Output = "text", at: At = HERE) -> int:
    """What was in force since when, by which cause, by whom, and what became of it; the latest first."""
    with at.leader() as master:
        doc = master.get("/history")
    if output == "json":
        say_json(doc)
    elif doc["items"]:
        say("\n".join(show.history(doc["items"])))
    else:
        say("no commit was in force yet")
    return 0
