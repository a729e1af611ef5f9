"""`tdie messages`: what waits on the buses of all nodes, and what to do with dead letters."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal
from urllib.parse import quote

from cyclopts import App, Parameter

from agent.errors import Invalid
from reconciler.cli.main import app
from reconciler.cli.options import HERE, At
from reconciler.cli.out import Output, note, paint, say, say_json, table
from reconciler.client import MasterClient

messages = App(name="messages", help="Messages on their way, and those that could not be delivered.")
app.command(messages)

State = Literal["dead", "waiting", "all"]
All = Annotated[bool, Parameter(name="--all", negative=(), help="All dead letters (of this topic and instance).")]


@messages.command(name="list")
def list_messages(
    *,
    state: State = "all",
    topic: str = "",
    instance: str = "",
    limit: int = 100,
    output: Output = "text",
    at: At = HERE,
) -> int:
    """Messages that are not done on any node, dead letters first."""
    with at.leader() as master:
        doc = _listed(master, state, topic, instance, limit)
    if output == "json":
        say_json(doc)
        return 0
    for line in listed(doc):
        say(line)
    if doc["unreachable"]:
        note(f"not asked, because they do not answer: {', '.join(doc['unreachable'])}")
    return 0


@messages.command
def show(
    id: str,
    *,
    output: Output = "text",
    at: At = HERE,
) -> int:
    """One message as it was published, and how it stands for each instance."""
    with at.leader() as master:
        doc = master.get(_path(id))
    if output == "json":
        say_json(doc)
        return 0
    for line in listed({"items": doc["deliveries"]}):
        say(line)
    say()
    say(json.dumps(doc["message"], indent=2, ensure_ascii=False))
    return 0


@messages.command
def retry(
    *ids: str,
    all: All = False,
    topic: str = "",
    instance: str = "",
    at: At = HERE,
) -> int:
    """Try dead letters anew, from the first attempt."""
    with at.leader() as master:
        wanted = _wanted(master, ids, topic, instance, all_dead=all)
        count = sum(master.post(f"{_path(id)}/retry{_only(instance)}")["retried"] for id in wanted)
    say(f"{count} dead letter(s) are tried again")
    return 0


@messages.command
def drop(
    *ids: str,
    all: All = False,
    topic: str = "",
    instance: str = "",
    at: At = HERE,
) -> int:
    """Give messages up: they are not delivered any more."""
    with at.leader() as master:
        wanted = _wanted(master, ids, topic, instance, all_dead=all)
        count = sum(master.delete(f"{_path(id)}{_only(instance)}")["dropped"] for id in wanted)
    say(f"{count} message(s) dropped")
    return 0


def listed(doc: dict[str, Any]) -> list[str]:
    """The lines of a table of messages."""
    if not doc["items"]:
        return ["no message waits"]
    rows = [_row(row) for row in doc["items"]]
    head = ["ID", "STATE", "TOPIC", "TYPE", "FOR", "NODE", "TRIES", "SINCE", "ERROR"]
    first, *rest = table(rows, head)
    return [first, *(paint(line, "red" if row[1] == "dead" else "") for line, row in zip(rest, rows, strict=True))]


def _row(row: dict[str, Any]) -> list[str]:
    what = [row["id"], row["state"], row["topic"], row["type"], row["instance"] or "-", row["node"]]
    return [*what, str(row["attempts"]), row["accepted"][:19] + "Z", row["error"]]


def _listed(master: MasterClient, state: str, topic: str, instance: str, limit: int) -> Any:
    return master.get("/messages", state=state, topic=topic, instance=instance, limit=limit)


def _wanted(master: MasterClient, ids: tuple[str, ...], topic: str, instance: str, *, all_dead: bool) -> list[str]:
    if bool(ids) == all_dead:
        raise Invalid("name messages, or say --all", code="USAGE")
    found = _listed(master, "dead", topic, instance, 1000)["items"] if all_dead else []
    return list(dict.fromkeys((*ids, *(row["id"] for row in found))))


def _path(id: str) -> str:
    return f"/messages/{quote(id, safe='')}"


def _only(instance: str) -> str:
    return f"?instance={quote(instance, safe='')}" if instance else ""
