"""Pure: the API's documents → the text that an operator reads at three in the morning."""

from __future__ import annotations

from typing import Any

from reconciler.cli.out import paint, table

PRESENCE_COLOUR = {"alive": "green", "lost": "red", "unreachable": "yellow", "joining": "yellow", "absent": "dim"}


def status(doc: dict[str, Any]) -> str:
    """The whole cluster at a glance: verdict first, then Git, what is wrong, nodes, instances."""
    parts = [_headline(doc), *_git(doc["git"]), *_suspended(doc), *_wrong(doc)]
    if doc["nodes"]:
        parts += ["", *nodes(doc["nodes"])]
    if doc["instances"]:
        parts += ["", *instances(doc["instances"])]
    parts += _changes(doc["changes"])
    return "\n".join(parts)


def _headline(doc: dict[str, Any]) -> str:
    wanted = sum(row["wanted"] for row in doc["instances"])
    healthy = sum(min(row["healthy"], row["wanted"]) for row in doc["instances"])
    up = sum(node["presence"] == "alive" for node in doc["nodes"])
    git = doc["git"]
    if not doc["leading"]:
        verdict = paint("NO LEADER", "red")
    elif git["problems"]:
        verdict = paint("COMMIT REJECTED", "red")
    elif git["trouble"]:
        verdict = paint("GIT TROUBLE", "red")
    elif git.get("rollback"):
        verdict = paint("ROLLED BACK" if doc["settled"] else "ROLLING BACK", "yellow")
    elif doc["converged"]:
        verdict = paint("CONVERGED", "green")
    elif not git["commit"]:
        verdict = paint("NO COMMIT YET", "yellow")
    else:
        verdict = paint("CHANGING", "yellow")
    return f"{doc['cluster']}: {verdict}  {healthy}/{wanted} replicas healthy, {up}/{len(doc['nodes'])} nodes alive"


def _git(git: dict[str, Any]) -> list[str]:
    commit = git["commit"][:8] or "none"
    lines = [f"commit {commit} in force" + (f": {git['subject']}" if git["subject"] else "") + f"  ({git['source']})"]
    if back := git.get("rollback"):
        lines += [paint(line, "red") for line in _rollback(git, back)]
    if git["problems"]:
        lines.append(paint(f"commit {git['tip'][:8]} REJECTED; {commit} stays in force:", "red"))
        lines += [f"  {p['file']}:{p['line']}:{p['column']} {p['code']} {p['message']}" for p in git["problems"]]
    if git["trouble"]:
        since = f" for {_age(git['troubleFor'])}" if git["troubleFor"] else ""
        lines.append(paint(f"{git['trouble']}{since}", "red"))
    return lines


def _suspended(doc: dict[str, Any]) -> list[str]:
    return [
        paint(f"! SUSPENDED: {word}; changes wait until 'tdie resume', 'tdie apply' makes those of now", "red")
        for word in doc.get("suspended", ())
    ]


def _rollback(git: dict[str, Any], back: dict[str, Any]) -> list[str]:
    """That something else than the branch's tip runs, why, who did it, and how it ends."""
    who = f"by {back['who']}" if not back["automatic"] else f"by itself ({back['who']})"
    lines = [
        f"! ROLLED BACK from {back['from'][:8]} {who} at {back['at']}" + (f": {back['why']}" if back["why"] else "")
    ]
    tip = git["tip"]
    if tip and tip in back["quarantined"]:
        lines.append(f"  the tip of the branch, {tip[:8]}, is quarantined and does not run")
    elif tip:
        lines.append(f"  the tip of the branch, {tip[:8]}, cannot be in force (see below)")
    lines.append("  this ends with a newer commit in Git, or with 'tdie rollback --cancel', which runs the tip again")
    return lines


def history(rows: list[dict[str, Any]]) -> list[str]:
    """A table of what was in force when; under each row why, where there is something to say."""
    cells = [
        [
            row["since"].replace("T", " ").removesuffix("Z"),
            row["until"].replace("T", " ").removesuffix("Z") if row["until"] else "in force",
            row["commit"][:8],
            row["result"],
            row["cause"],
            row["who"],
            row["subject"],
        ]
        for row in rows
    ]
    lines = table(cells, ["SINCE (UTC)", "UNTIL", "COMMIT", "RESULT", "CAUSE", "WHO", "SUBJECT"])
    out = lines[:1]
    for row, line in zip(rows, lines[1:], strict=True):
        out.append(paint(line, {"healthy": "", "superseded": "dim"}.get(row["result"], "yellow")))
        if row["why"]:
            out.append(f"    {row['why']}")
        if row["halted"]:
            out.append(f"    halted: {row['halted']}")
    return out


def _wrong(doc: dict[str, Any]) -> list[str]:
    lines = [paint(f"! {doc['error']}", "red")] if doc["error"] else []
    lines += [paint(f"! {warning}", "yellow") for warning in doc["warnings"]]
    for node in doc["nodes"]:
        lines += [paint(f"! {node['name']}: {p['code']} {p['detail']}", "yellow") for p in node["problems"]]
        lines += [paint(f"  {node['name']}: not owned by Git: {what}", "dim") for what in node.get("manual", ())]
    return lines


def nodes(rows: list[dict[str, Any]]) -> list[str]:
    """A table of nodes."""
    cells = [
        [
            node["name"],
            node["presence"]
            + (", drained" if node["draining"] else ", cordoned" if node["cordoned"] else "")
            + ("" if node["listed"] else ", not in Git"),
            f"{node['healthy']}/{node['replicas']}",
            _age(node["for"]),
            node["assignment"],
            "; ".join(
                filter(
                    None, [node["detail"], node["wish"], f"locked by {node['lockedBy']}" if node["lockedBy"] else ""]
                )
            ),
        ]
        for node in rows
    ]
    return table(cells, ["NODE", "STATE", "HEALTHY", "FOR", "ASSIGNMENT", "DETAIL"])


def instances(rows: list[dict[str, Any]]) -> list[str]:
    """A table of instances, each followed by why it is not as wanted."""
    cells = [
        [
            row["name"],
            row["package"],
            f"{row['healthy']}/{row['wanted']}",
            str(row["restarts"]),
            _where(row["replicas"]),
        ]
        for row in rows
    ]
    lines = table(cells, ["INSTANCE", "PACKAGE", "HEALTHY", "RESTARTS", "ON"])
    out = lines[:1]
    for row, line in zip(rows, lines[1:], strict=True):
        out.append(line if row["healthy"] >= row["wanted"] else paint(line, "yellow"))
        out += [f"    {hold}" for hold in row["holds"][:3]]
        if row["lastError"]:
            out.append(paint(f"    last error: {row['lastError']}", "red"))
    return out


def _where(replicas: list[dict[str, Any]]) -> str:
    counts: dict[str, int] = {}
    for one in replicas:
        counts[one["node"]] = counts.get(one["node"], 0) + 1
    shown = [name if n == 1 else f"{name} ×{n}" for name, n in sorted(counts.items())]
    return ", ".join(shown[:6]) + (f" and {len(shown) - 6} more" if len(shown) > 6 else "")


def _changes(changes: list[dict[str, Any]]) -> list[str]:
    if not changes:
        return []
    held = sum(one["hold"] is not None for one in changes)
    return ["", f"{len(changes)} change(s) to go, {held} waiting; 'tdie plan' shows them"]


def replicas(rows: list[dict[str, Any]]) -> list[str]:
    """A table of replicas."""
    cells = [
        [
            row["name"],
            row["node"],
            row["state"] + ("" if row["healthy"] or row["state"] != "Started" else ", not healthy"),
            row["package"],
            str(row["pid"] or "-"),
            str(row["port"] or "-"),
            str(row["restarts"]),
            (row["lease"]["text"] if row.get("lease") and row["lease"]["state"] != "held" else row["lastError"])[:80],
        ]
        for row in rows
    ]
    return table(cells, ["REPLICA", "NODE", "STATE", "PACKAGE", "PID", "PORT", "RESTARTS", "LAST ERROR, OR LEASE"])


def explanation(doc: dict[str, Any]) -> str:
    """Everything about one subject, and why nothing moves."""
    lines: list[str] = []
    if wanted := doc["wanted"]:
        count = f"{wanted['replicas']} replicas" if "replicas" in wanted else f"{wanted['perNode']} per node"
        lines.append(f"{wanted['instance']}: {count} of {wanted['package']}, written at {wanted['written']}")
        extra = [f"where {wanted['where']}"] if wanted["where"] else []
        extra += [f"after {', '.join(wanted['dependsOn'])}"] if wanted["dependsOn"] else []
        extra += [f"lease {wanted['lease']}"] if wanted.get("lease", "none") != "none" else []
        extra += ["suspended"] if wanted["suspended"] else []
        lines += [f"  {'; '.join(extra)}"] if extra else []
    if doc["node"]:
        lines += nodes([doc["node"]])
    if doc["replicas"]:
        lines += ["", *replicas(doc["replicas"])]
        lines += [
            f"  {row['name']} on {row['node']} {row['lease']['text']}" for row in doc["replicas"] if row.get("lease")
        ]
    lines.append("")
    if not doc["changes"]:
        lines.append("Nothing to change: what runs is what the commit in force asks for.")
    for one in doc["changes"]:
        lines.append(
            f"{one['verdict']} {one['replica']} on {one['node'] or 'no node'}: {one['reason']} ({one['cause']})"
        )
        if one["hold"]:
            lines.append(f"    waits: {one['hold']['reason']} {one['hold']['detail']}")
    return "\n".join(lines)


def _age(seconds: float | None) -> str:
    """A duration in one or two units."""
    if seconds is None:
        return ""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def packages(rows: list[dict[str, Any]]) -> list[str]:
    """A table of packages."""
    cells = [[row["name"], row["digest"][:12], str(row["nodes"]), ", ".join(row["usedBy"])] for row in rows]
    return table(cells, ["PACKAGE", "DIGEST", "NODES", "USED BY"])
