"""A plan for people and programs: text, markdown, JSON. No colours; what is destroyed comes first."""

from __future__ import annotations

from typing import Any

from reconciler.model.plan import Change, Hold, Plan, Verdict

FORMAT = "tdie/plan/1"
SYMBOLS = {
    Verdict.STOP: "-",
    Verdict.REPLACE: "-/+",
    Verdict.RECONFIGURE: "~",
    Verdict.MOVE: ">",
    Verdict.RENAME: "=",
    Verdict.START: "+",
}
_ALWAYS = (Verdict.START, Verdict.REPLACE, Verdict.STOP)
_SOMETIMES = (Verdict.RECONFIGURE, Verdict.MOVE, Verdict.RENAME)
NOTHING = "No changes. The fleet runs what Git asks for."
NOTHING_BACK = "No changes. The fleet runs what the commit rolled back to asks for."
NOTHING_YET = "No changes to make, but not everything is as Git asks for yet: see tdie status"


def summary(plan: Plan) -> str:
    """`Plan: 2 to start, 1 to replace, 0 to stop`, or a sentence when there is nothing to do."""
    if not plan.changes and not plan.healthy:
        return NOTHING_YET
    if not plan.changes:
        return NOTHING_BACK if plan.rolled_back else NOTHING
    counts = plan.counts()
    shown = [*_ALWAYS, *(verdict for verdict in _SOMETIMES if counts[verdict])]
    return "Plan: " + ", ".join(f"{counts[verdict]} to {verdict.value}" for verdict in shown)


def text(plan: Plan) -> str:
    """Lines for a terminal, ending with the summary and a newline."""
    holds = _holds(plan)
    widths = _widths(plan.changes)
    lines = [f"warning: {warning}" for warning in plan.warnings]
    lines += [f"note: {note}" for note in plan.notes]
    for change in plan.changes:
        lines.append(_line(change, widths))
        hold = holds.get(change.id)
        if hold is not None:
            lines.append(f"        held {hold.reason.value}: {hold.detail}")
    if lines:
        lines.append("")
    return "\n".join([*lines, summary(plan)]) + "\n"


def markdown(plan: Plan) -> str:
    """A comment for a pull request: the summary, a table, and the reasons why something waits in a part that unfolds."""
    lines = [f"### tdie plan for `{plan.commit[:12]}`", "", f"**{summary(plan)}**"]
    lines += ["", *(f"> ⚠️ {_cell(warning)}" for warning in plan.warnings)] if plan.warnings else []
    lines += ["", *(f"> {_cell(note)}" for note in plan.notes)] if plan.notes else []
    if plan.changes:
        lines += ["", "| | replica | node | why | cause |", "|---|---|---|---|---|"]
        lines += [_row(change) for change in plan.changes]
    if plan.holds:
        lines += ["", "<details>", f"<summary>{len(plan.holds)} not made yet</summary>", ""]
        lines += ["| replica | held | reason |", "|---|---|---|"]
        lines += [f"| `{hold.replica}` | {hold.reason.value} | {_cell(hold.detail)} |" for hold in plan.holds]
        lines += ["", "</details>"]
    if plan.changes:
        lines += ["", f"Plan digest `{plan.digest}`"]
    return "\n".join(lines) + "\n"


def document(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values; keys are only ever added within one `format`."""
    holds = _holds(plan)
    return {
        "format": FORMAT,
        "commit": plan.commit,
        "rolledBack": plan.rolled_back,
        "digest": plan.digest,
        "pruneDigest": plan.prune_digest,
        "lostDigest": plan.lost_digest,
        "summary": {verdict.value: plan.counts()[verdict] for verdict in (*_ALWAYS, *_SOMETIMES)},
        "changes": [_change_document(change, holds.get(change.id)) for change in plan.changes],
        "targets": sorted(plan.targets),
        "warnings": list(plan.warnings),
        "notes": list(plan.notes),
    }


def _holds(plan: Plan) -> dict[str, Hold]:
    return {hold.change: hold for hold in plan.holds}


def _where(change: Change) -> str:
    node = change.node or "nowhere"
    return f"{change.from_node} → {node}" if change.from_node else node


def _what(change: Change) -> str:
    package = change.from_package if change.verdict is Verdict.STOP else change.to_package
    cause = "" if change.cause.value == "commit" else f"[{change.cause.value}] "
    return f"{package} {cause}".strip() + (f" ({change.reason})" if change.reason else "")


def _widths(changes: tuple[Change, ...]) -> tuple[int, int]:
    return (max((len(c.replica) for c in changes), default=0), max((len(_where(c)) for c in changes), default=0))


def _line(change: Change, widths: tuple[int, int]) -> str:
    replica, where = change.replica.ljust(widths[0]), _where(change).ljust(widths[1])
    return f"{SYMBOLS[change.verdict]:>3} {change.verdict.value:<11} {replica}  {where}  {_what(change)}".rstrip()


def _row(change: Change) -> str:
    symbol, replica = SYMBOLS[change.verdict], change.replica
    return f"| `{symbol}` {change.verdict.value} | `{replica}` | {_where(change)} | {_cell(_what(change))} | {change.cause.value} |"


def _cell(value: str) -> str:
    """Safe inside a table cell: what comes from documents must not become markup."""
    for old, new in (("\\", "\\\\"), ("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "\\`"), ("\n", " ")):
        value = value.replace(old, new)
    return "".join("\\" + char if char in "*_[]" else char for char in value)


def _change_document(change: Change, hold: Hold | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": change.id,
        "replica": change.replica,
        "instance": change.instance,
        "verdict": change.verdict.value,
        "cause": change.cause.value,
        "commit": change.commit,
        "node": change.node,
        "fromNode": change.from_node,
        "fromHash": change.from_hash,
        "toHash": change.to_hash,
        "fromPackage": change.from_package,
        "toPackage": change.to_package,
        "fromReplica": change.from_replica,
        "reason": change.reason,
        "wave": change.wave,
    }
    if hold is not None:
        found["hold"] = {
            "reason": hold.reason.value,
            "detail": hold.detail,
            "waitingOn": list(hold.waiting_on),
            "until": hold.until,
        }
    return found
