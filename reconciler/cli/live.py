"""Commands that ask the leading controller: status, get, explain, logs, events, apply."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from agent.errors import Invalid, Missing, Waiting
from reconciler.cli import show
from reconciler.cli.asking import agreed, who
from reconciler.cli.main import app
from reconciler.cli.options import HERE, At
from reconciler.cli.out import Output, note, say, say_json


@app.command
def status(*, output: Output = "text", at: At = HERE) -> int:
    """The whole cluster at a glance: commit in force, what is wrong, nodes, instances."""
    with at.leader() as master:
        doc = master.get("/status")
    if output == "json":
        say_json(doc)
    else:
        say(show.status(doc))
    return 0


@app.command
def get(
    kind: Literal["nodes", "instances", "replicas", "packages"],
    name: str | None = None,
    *,
    output: Output = "text",
    at: At = HERE,
) -> int:
    """List nodes, instances, replicas or packages, or show the one called NAME."""
    with at.leader() as master:
        rows: list[dict[str, Any]] = master.get(f"/{kind}")["items"]
    if name is not None:
        rows = [row for row in rows if row["name"] == name]
        if not rows:
            raise Missing(f"no {kind.removesuffix('s')} is called {name}")
    if output == "json":
        say_json({"format": f"tdie/{kind}/1", "items": rows})
        return 0
    lines = {"nodes": show.nodes, "instances": show.instances, "replicas": show.replicas, "packages": show.packages}[
        kind
    ](rows)
    say("\n".join(lines))
    return 0


@app.command
def explain(
    subject: str,
    *,
    output: Output = "text",
    at: At = HERE,
) -> int:
    """Why an instance, replica or node is as it is: what Git wants, what is there, what waits on what."""
    with at.leader() as master:
        doc = master.get(f"/explain/{subject}")
    if output == "json":
        say_json(doc)
    else:
        say(show.explanation(doc))
    return 0


@app.command
def logs(
    replica: str,
    *,
    lines: int = 100,
    follow: Annotated[bool, Parameter(name=["--follow", "-f"], negative=())] = False,
    at: At = HERE,
) -> int:
    """The last lines that a replica wrote, from the node it runs on; with --follow also what it writes from now on."""
    with at.leader() as master:
        if not follow:
            sys.stdout.write(master.text(f"/replicas/{replica}/logs", lines=lines))
            return 0
        for text in master.stream(f"/replicas/{replica}/logs", lines=lines, follow=True):
            sys.stdout.write(text)
            sys.stdout.flush()
    note(f"the log of {replica} ends here: it moved, or its node or the leader went away")
    return 0


@app.command
def events(
    *,
    follow: Annotated[bool, Parameter(name=["--follow", "-f"])] = False,
    output: Output = "text",
    at: At = HERE,
) -> int:
    """What happened lately, oldest first; with --follow also what happens next."""
    _tell_events(at, 0, output, follow=follow)
    while follow:  # the leader went: its successor numbers its events anew
        time.sleep(1.0)
        try:
            _tell_events(at, 0, output, follow=True)
        except Waiting as error:
            note(str(error))
    return 0


def _tell_events(at: At, after: int, output: str, *, follow: bool) -> int:
    """Print events after this number; with `follow` until the controller does not answer any more. The last number."""
    with at.leader() as master:
        while True:
            try:
                answer = master.get("/events", timeout=70.0, after=after, wait=50 if follow and after else 0)
            except Waiting:
                if after:
                    return after
                raise
            for event in answer["items"]:
                line = f"{event['at'][:19]}Z  {event['code']:<16} {event['detail']}"
                say(json.dumps(event) if output == "json" else line)
                after = event["number"]
            if not follow:
                return after


@app.command
def apply(
    file: Path | None = None,
    *,
    yes: Annotated[bool, Parameter(name=["--yes", "-y"], negative=())] = False,
    confirm_prune: Annotated[bool, Parameter(negative=())] = False,
    confirm_lost: Annotated[bool, Parameter(negative=())] = False,
    at: At = HERE,
) -> int:
    """Carry out the plan now shown, or exactly the one saved in FILE ('tdie plan -o json --out FILE').

    Parameters
    ----------
    file
        A saved plan. Refused, naming the changes, when one of them was altered or a commit brought new ones.
    yes
        Do not ask.
    confirm_prune
        Also stop what is held because a commit removes more than sync.maxPrune, or something protected.
    confirm_lost
        The nodes that were lost together, or did not come back since Consul lost its data, are really gone: start what ran
        there elsewhere, one node after the other.
    """
    with at.leader() as master:
        if file is None:
            text = master.get("/plan", form="text")["text"]
            say(text)
            current = master.get("/plan")
            if not current["changes"]:
                return 0
            if not yes and not agreed("apply"):
                note("nothing was applied")
                return 1
        else:
            current = _saved(file)
        body = {
            "changes": [{"id": c["id"], "replica": c["replica"]} for c in current["changes"]],
            "plan": current["digest"],
            "who": who(),
            "confirmPrune": confirm_prune,
            "confirmLost": confirm_lost,
        }
        answer = master.post("/approvals", body)
    _approved(answer)
    return 0


@app.command
def approve(
    *names: str,
    yes: Annotated[bool, Parameter(name=["--yes", "-y"], negative=())] = False,
    at: At = HERE,
) -> int:
    """Let some changes of the plan now shown go on: those of these instances or replicas.

    For sync.mode: manual, closed windows, and instances whose canaries are healthy (update.canary). 'tdie apply' is the same
    for the whole plan.

    Parameters
    ----------
    names
        Instances or replicas.
    yes
        Do not ask.
    """
    if not names:
        raise Invalid("name what is approved: instances or replicas", code="USAGE", hint="all of it: tdie apply")
    with at.leader() as master:
        current = master.get("/plan")
        chosen = [c for c in current["changes"] if c["instance"] in names or c["replica"] in names]
        touched = {name for c in chosen for name in (c["instance"], c["replica"])}
        if unknown := [name for name in names if name not in touched]:
            raise Missing(f"nothing of {', '.join(unknown)} is to be changed", hint="see tdie plan --in-force")
        for one in chosen:
            held = f"  held {one['hold']['reason']}: {one['hold']['detail']}" if one.get("hold") else ""
            say(f"{one['verdict']:<11} {one['replica']}  {one['node'] or 'nowhere'}  {one['reason']}{held}")
        if not yes and not agreed("approve"):
            note("nothing was approved")
            return 1
        body = {
            "changes": [{"id": c["id"], "replica": c["replica"]} for c in current["changes"]],
            "plan": current["digest"],
            "only": [c["id"] for c in chosen],
            "who": who(),
        }
        answer = master.post("/approvals", body)
    _approved(answer)
    return 0


def _approved(answer: dict[str, Any]) -> None:
    go_on = f", past the canaries of {', '.join(answer['promoted'])}" if answer.get("promoted") else ""
    say(f"approved {answer['approved']} change(s) of plan {answer['plan']}{go_on}; 'tdie status' shows how they go")


def _saved(file: Path) -> dict[str, Any]:
    try:
        plan: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Invalid("is not a saved plan", where=str(file), hint="make one: tdie plan -o json --out FILE") from error
    if not isinstance(plan, dict) or plan.get("format") != "tdie/plan/1":
        raise Invalid(
            "is not a plan this version can read", where=str(file), hint="make one: tdie plan -o json --out FILE"
        )
    return plan
