"""What a look at Git brings: the desired state in force, and what is wrong with the tip, if anything."""

from __future__ import annotations

from dataclasses import dataclass

from agent.clock import Monotonic
from agent.errors import TdieError
from reconciler.model.desired import DesiredState
from reconciler.model.problems import Problem
from reconciler.model.rollback import Rollback


@dataclass(frozen=True, slots=True)
class Sourced:
    """One look at Git. `desired` is what is in force, and stays the same object while nothing changed."""

    desired: DesiredState | None
    commit: str = ""  # the tip that was looked at, good or not; "" when there is none
    problems: tuple[Problem, ...] = ()  # why the tip was rejected
    trouble: TdieError | None = None  # why Git could not be read, or the tip could not be accepted
    since: Monotonic | None = None  # of the trouble
    rollback: Rollback | None = None  # why an earlier commit than the tip is in force
