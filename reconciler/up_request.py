"""What `tdie up` was asked for, and the file by which other commands find it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.errors import Refused, TdieError
from reconciler.children import alive, start_time


def say(text: str) -> None:
    """A line for the person at the terminal, at once."""
    print(text, flush=True)  # noqa: T201


@dataclass(frozen=True, slots=True)
class UpRequest:
    """The whole system on one machine: from which repository, with what, and where everything is kept."""

    repository: str
    ref: str
    data: Path
    controllers: int = 1

    @property
    def state(self) -> Path:
        return state_file(self.data)

    def must_be_down(self) -> None:
        """Raises Refused (ALREADY_UP) when it runs already."""
        if (owner := owner_of(self.state)) is not None:
            raise Refused(
                f"already up (pid {owner})", code="ALREADY_UP", where=str(self.data), hint="tdie down stops it"
            )

    def write_state(self, more: Mapping[str, Any]) -> None:
        """Other commands find this process and its cluster from now on."""
        state = {"pid": os.getpid(), "startTime": start_time(os.getpid()), "repository": self.repository, **more}
        part = self.state.with_suffix(".part")
        part.write_text(json.dumps(state, indent=2) + "\n")
        part.replace(self.state)


def state_file(data: Path) -> Path:
    """Where a running `tdie up` with this data folder tells of itself."""
    return data / "up.json"


def owner_of(state: Path) -> int | None:
    """The pid of the `tdie up` that wrote this file, if it still is that process."""
    try:
        found = json.loads(state.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise TdieError(
            "is damaged", code="STATE_FILE", where=str(state), hint="remove it when nothing runs"
        ) from error
    pid = int(found["pid"])
    return pid if alive(pid) and start_time(pid) == found["startTime"] else None


def progress(status: Mapping[str, Any]) -> str:
    """A status document in one line."""
    wanted = sum(row["wanted"] for row in status["instances"])
    healthy = sum(min(row["healthy"], row["wanted"]) for row in status["instances"])
    git = status["git"]
    if git["problems"]:
        first = git["problems"][0]
        return f"commit {git['tip'][:8]} rejected: {first['file']}:{first['line']}:{first['column']} {first['message']}"
    state = "converged" if status["converged"] else f"{len(status['changes'])} change(s) to go"
    return f"{healthy}/{wanted} replicas healthy, {state}"
