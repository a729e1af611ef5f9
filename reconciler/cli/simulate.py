"""`tdie simulate`: what would happen, played by the real controllers and agents on virtual time. Nothing is touched."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from agent.errors import Invalid
from reconciler.cli.main import app
from reconciler.cli.options import HERE, At
from reconciler.cli.out import Output, note, say, say_json
from reconciler.model.desired import DesiredState
from reconciler.model.observed import ObservedState

NOT_WELL = 2  # exit code when something that Git asks for does not run in the end, or a promise was broken


@app.command
def simulate(
    script: Path | None = None,
    *,
    lose: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    folder: Path | None = None,
    seed: int | None = None,
    output: Output = "text",
    at: At = HERE,
) -> int:
    """What would happen: to the live cluster if a node died now, in a script, or in a history full of faults.

    The real planner, controllers and agents run on virtual time, in memory. Exit code 0 when everything that can run does in the
    end (or every promise was kept), 2 when not, 1 for what cannot be simulated.

    Parameters
    ----------
    script
        A file with one command a line; it is printed with what each of them answered.
    lose
        A node that dies; may be given more than once, they die together then.
    folder
        A fleet that runs the documents of this folder, instead of the live cluster.
    seed
        A made-up cluster, half an hour of 20 to 50 faults that follow from this number, and whether every promise was kept.
    output
        How to print it.
    """
    asked = [script is not None, bool(lose), seed is not None]
    if sum(asked) != 1:
        raise Invalid(
            "say what to simulate: a SCRIPT, --lose NODE or --seed N", code="USAGE", hint="see 'tdie simulate --help'"
        )
    _silence()
    if script is not None:
        return _script(script)
    return _history(seed, output) if seed is not None else _lose(lose, folder, output, at)


def _script(script: Path) -> int:
    from reconciler.simulation.clauses import BadLine
    from reconciler.simulation.script import run

    try:
        say(run(script.read_text(encoding="utf-8")).rstrip("\n"))
    except (BadLine, UnicodeDecodeError) as error:
        raise Invalid(str(error), code="SCRIPT", where=str(script)) from error
    return 0


def _history(seed: int, output: str) -> int:
    from reconciler.simulation.history import run

    played = run(seed)
    if output == "json":
        broken = [{"promise": each.promise, "at": each.at, "detail": each.detail} for each in played.violations]
        said = {"seed": seed, "digest": played.digest, "seconds": played.simulated, "faults": list(played.story)}
        say_json({"format": "tdie/history/1", **said, "broken": broken})
    else:
        say("\n".join(played.story))
        say("".join(f"\n{each}" for each in played.violations).lstrip("\n") or "every promise was kept")
    return NOT_WELL if played.violations else 0


def _lose(nodes: tuple[str, ...], folder: Path | None, output: str, at: At) -> int:
    from reconciler.simulation.what_if import lose

    desired, observed = (_documents(folder), None) if folder is not None else _live(at)
    told = lose(desired, nodes, observed)
    if output == "json":
        said = {"title": told.title, "story": list(told.lines), "missing": list(told.missing)}
        say_json({"format": "tdie/simulation/1", **said})
    else:
        say(told.text())
    return 0 if told.well else NOT_WELL


def _documents(folder: Path) -> DesiredState:
    from reconciler.source.validate import load_worktree

    checked = asyncio.run(load_worktree(folder))
    if checked.desired is None:
        lines = "".join(f"\n  {problem}" for problem in checked.problems)
        raise Invalid(f"{folder} has {len(checked.problems)} problem(s):{lines}", code="COMMIT_REJECTED")
    return checked.desired


def _live(at: At) -> tuple[DesiredState, ObservedState]:
    """What is in force, and where it runs, as the leading controller sees it."""
    from pydantic import TypeAdapter

    with at.leader() as master:
        doc = master.get("/observed", desired="true")
        note(f"simulating the live cluster, as {master.api} sees it")
    desired = TypeAdapter(DesiredState).validate_python(doc["desired"])
    return desired, TypeAdapter(ObservedState).validate_python(doc["observed"])


def _silence() -> None:
    """What simulated controllers and agents log is about a world that does not exist."""
    import structlog

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
