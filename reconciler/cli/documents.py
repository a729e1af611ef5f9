"""Commands that read documents: validate, plan, diff. `--against` works with no cluster at all."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from agent.clock import Monotonic
from agent.errors import Invalid, Missing, TdieError
from reconciler.cli.main import app
from reconciler.cli.options import HERE, At
from reconciler.cli.out import Output, PlanOutput, coloured, emit, note, paint_plan, say, say_json
from reconciler.model import problems as render_problems
from reconciler.model.desired import DesiredState
from reconciler.model.observed import ObservedState, Record
from reconciler.model.plan import Plan
from reconciler.model.problems import Problem
from reconciler.planning import plan as make_plan
from reconciler.planning import render

CHANGES = 2  # exit code of `plan --detailed-exitcode` when there are some
NOTHING = "nothing"
_NOW = Monotonic(1e9)  # any moment: a fleet that is assumed has no clock

Folder = Annotated[Path, Parameter(help="Folder of the documents, inside a Git repository for revisions.")]


@app.command
def validate(
    folder: Path = Path("."),
    *,
    rev: str | None = None,
    output: Annotated[Literal["text", "json", "github"], Parameter(name=["--output", "-o"])] = "text",
) -> int:
    """Every problem of the documents in FOLDER (or of a revision), as file:line:col CODE message. Exit code 1 if any.

    Parameters
    ----------
    folder
        Folder of the documents.
    rev
        A commit, branch or tag instead of the files as they lie there.
    output
        How to print it; `github` annotates the lines of a pull request.
    """
    desired, problems = _read(folder, rev)
    form = {"text": render_problems.as_text, "json": render_problems.as_json, "github": render_problems.as_github}[
        output
    ]
    if text := form(problems).rstrip("\n"):
        say(text)
    if desired is not None and output == "text":
        nodes = len(desired.cluster.nodes)
        say(f"valid: cluster {desired.cluster.name}, {nodes} node(s), {len(desired.instances)} instance(s)")
    return 1 if problems else 0


@app.command
def plan(
    *,
    against: str | None = None,
    rev: str | None = None,
    folder: Folder = Path("."),
    in_force: Annotated[bool, Parameter(negative=())] = False,
    output: PlanOutput = "text",
    out: Path | None = None,
    detailed_exitcode: Annotated[bool, Parameter(negative=())] = False,
    at: At = HERE,
) -> int:
    """What would change if the documents in FOLDER were pushed. Nothing is touched.

    Parameters
    ----------
    against
        Compare with this revision as if all of it ran, instead of with the live cluster; `nothing` is an empty fleet.
    rev
        Plan this revision instead of the files as they lie in FOLDER.
    in_force
        The plan that the leading controller is carrying out now.
    output
        How to print it.
    out
        Write it to this file; a JSON plan can be carried out with 'tdie apply FILE'.
    detailed_exitcode
        Exit with 2 when there are changes.
    """
    if against is None and (in_force or not _is_repository(folder)):
        found, text = _leaders_plan(at, output)
        changes = bool(found["changes"])
    else:
        made = _plan_of(folder, rev, against, lambda: _live(at))
        changes, text = bool(made.changes), _rendered(made, output)
    emit(paint_plan(text) if output == "text" and out is None and coloured() else text, out)
    return CHANGES if changes and detailed_exitcode else 0


def _plan_of(folder: Path, rev: str | None, against: str | None, live: Any) -> Plan:
    desired = _desired(folder, rev)
    if against is None:
        observed, now = live()
    else:
        observed, now = _assumed(folder, against, desired), _NOW
    return make_plan(desired, observed, Record(), now)


def _assumed(folder: Path, against: str, desired: DesiredState) -> ObservedState:
    """A fleet in which the other revision runs entirely."""
    from reconciler.simulation.executed import as_if_running, empty_fleet

    if against == NOTHING:
        return empty_fleet(desired)
    before = as_if_running(_desired(folder, against), _NOW)
    joined = empty_fleet(desired, before.epoch).nodes
    return ObservedState(before.epoch, {**joined, **before.nodes}, before.warnings)


def _live(at: At) -> tuple[ObservedState, Monotonic]:
    """The fleet as the leading controller sees it."""
    from pydantic import TypeAdapter

    with at.leader() as master:
        doc = master.get("/observed")
        note(f"planning against the live cluster, as {master.api} sees it")
    return TypeAdapter(ObservedState).validate_python(doc["observed"]), Monotonic(doc["now"])


def _leaders_plan(at: At, output: str) -> tuple[dict[str, Any], str]:
    import json

    with at.leader() as master:
        found: dict[str, Any] = master.get("/plan")
        if output == "json":
            return found, json.dumps(found, indent=2, ensure_ascii=False)
        return found, str(master.get("/plan", form=output)["text"])


def _rendered(made: Plan, output: str) -> str:
    if output == "json":
        import json

        return json.dumps(render.document(made), indent=2, ensure_ascii=False)
    return render.text(made) if output == "text" else render.markdown(made)


@app.command
def diff(revisions: str, *, folder: Folder = Path("."), output: Output = "text") -> int:
    """What people changed between two revisions (REV..REV), and what that would do to a fleet that runs the first.

    Parameters
    ----------
    revisions
        Two revisions with two dots between them, e.g. main~1..main; either may be empty for the files as they lie there.
    """
    first, dots, second = revisions.partition("..")
    if not dots:
        raise Invalid(
            f"'{revisions}' is not of the form REV..REV", code="REVISIONS", hint="e.g. tdie diff main~1..main"
        )
    from reconciler.planning.differences import differences

    before, after = _desired(folder, first or None), _desired(folder, second or None)
    lines = differences(before, after)
    made = make_plan(after, _assumed(folder, first, after) if first else _running(before, after), Record(), _NOW)
    if output == "json":
        say_json({"format": "tdie/diff/1", "differences": lines, "plan": render.document(made)})
        return 0
    for line in lines:
        say(paint_plan(line) if coloured() else line)
    if lines:
        say()
    text = render.text(made)
    say(paint_plan(text) if coloured() else text)
    return 0


def _running(before: DesiredState, after: DesiredState) -> ObservedState:
    from reconciler.simulation.executed import as_if_running, empty_fleet

    fleet = as_if_running(before, _NOW)
    return ObservedState(fleet.epoch, {**empty_fleet(after, fleet.epoch).nodes, **fleet.nodes}, fleet.warnings)


# ------------------------------------------------------------------------------------------------ reading


def _desired(folder: Path, rev: str | None) -> DesiredState:
    """The desired state, or an error that lists every problem."""
    desired, problems = _read(folder, rev)
    if desired is None:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise Invalid(f"{rev or folder} has {len(problems)} problem(s):{lines}", code="COMMIT_REJECTED")
    return desired


def _read(folder: Path, rev: str | None) -> tuple[DesiredState | None, tuple[Problem, ...]]:
    if rev is None:
        from reconciler.source.validate import load_worktree

        checked = asyncio.run(load_worktree(folder))
        return checked.desired, checked.problems
    root = _repository(folder)
    return asyncio.run(_read_revision(root, folder.resolve().relative_to(root).as_posix(), rev))


async def _read_revision(root: Path, subdir: str, rev: str) -> tuple[DesiredState | None, tuple[Problem, ...]]:
    from reconciler.source.source import GitSource

    with tempfile.TemporaryDirectory(prefix="tdie-plan-") as cache:
        source = GitSource(
            str(root),
            subdir="" if subdir == "." else subdir,
            mirror_dir=Path(cache) / "mirror",
            cache_dir=Path(cache) / "packages",
        )
        try:
            sourced = await source.load(rev)
        finally:
            await source.close()
    if sourced.trouble is not None:
        raise sourced.trouble
    return sourced.desired, sourced.problems


def _is_repository(folder: Path) -> bool:
    try:
        _repository(folder)
    except TdieError:
        return False
    return True


def _repository(folder: Path) -> Path:
    """The top of the Git repository that holds this folder."""
    here = folder.resolve()
    for found in (here, *here.parents):
        if (found / ".git").exists():
            return found
    raise Missing(f"{here} is not inside a Git repository", code="NO_REPOSITORY", hint="name one with --folder")
