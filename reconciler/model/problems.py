"""What is wrong with a commit: where, a stable code, and a sentence that says what to do."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that must be changed before a commit can be in force. Lines and columns count from 1."""

    file: str  # relative to the folder that was read; "." for the commit as a whole
    line: int
    column: int
    code: str  # stable, upper case
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column} {self.code} {self.message}"


def as_text(problems: Iterable[Problem]) -> str:
    """One line for each problem."""
    return "".join(f"{problem}\n" for problem in problems)


def as_json(problems: Iterable[Problem]) -> str:
    """A versioned JSON document for programs."""
    rows = [
        {"file": p.file, "line": p.line, "column": p.column, "code": p.code, "message": p.message} for p in problems
    ]
    return json.dumps({"version": 1, "valid": not rows, "problems": rows}, indent=2, ensure_ascii=False) + "\n"


def as_github(problems: Iterable[Problem]) -> str:
    """Workflow commands that GitHub shows beside the lines of a pull request."""
    return "".join(
        f"::error file={_property(p.file)},line={p.line},col={p.column},title={_property(p.code)}::{_data(p.message)}\n"
        for p in problems
    )


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
