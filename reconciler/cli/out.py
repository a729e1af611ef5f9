"""Words on stdout, with colour only where a person looks, and JSON where a program does."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

Output = Annotated[Literal["text", "json"], Parameter(name=["--output", "-o"], help="How to print it.")]
PlanOutput = Annotated[Literal["text", "json", "markdown"], Parameter(name=["--output", "-o"], help="How to print it.")]

_COLOURS = {"red": "31", "green": "32", "yellow": "33", "blue": "36", "dim": "2", "bold": "1"}


def coloured() -> bool:
    """Whether stdout is a terminal whose owner did not ask for plain text (https://no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def paint(text: str, colour: str) -> str:
    """The text in a colour, or as it is."""
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if colour and coloured() else text


def say(text: str = "") -> None:
    """One line on stdout, at once."""
    print(text, flush=True)  # noqa: T201


def note(text: str) -> None:
    """One line on stderr: what a person should know, but a program reading stdout should not get."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def say_json(value: Any) -> None:
    """A JSON document on stdout."""
    say(json.dumps(value, indent=2, ensure_ascii=False))


def emit(text: str, out: Path | None) -> None:
    """The text in a file when one is named (whole or not at all), else on stdout."""
    if out is None:
        say(text.rstrip("\n"))
        return
    beside = out.with_name(out.name + ".part")
    beside.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
    beside.replace(out)


def paint_plan(text: str) -> str:
    """A text plan with its symbols in the colours that people know from elsewhere."""
    colours = {"-": "red", "-/+": "yellow", "~": "yellow", ">": "blue", "=": "blue", "+": "green"}
    lines = []
    for line in text.splitlines():
        symbol = line.strip().split(" ", 1)[0] if line.strip() else ""
        lines.append(paint(line, colours.get(symbol, "bold" if line.startswith("Plan:") else "")))
    return "\n".join(lines)


def table(rows: list[list[str]], head: list[str]) -> list[str]:
    """Lines of a table: columns as wide as their widest cell, two spaces apart, no trailing spaces."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]
    ]
    return [paint(lines[0], "dim"), *lines[1:]]
