"""Built-in packages: those of the agent, and the controller as a component, which no agent could hold.

After raising a version here: `python -m reconciler.components`.
"""

from __future__ import annotations

from pathlib import Path

from agent import components as of_agent

HERE = Path(__file__).parent


def names() -> tuple[str, ...]:
    """All built-in packages, sorted."""
    return tuple(sorted({*of_agent.names(), *of_agent.names(HERE)}))


def folder(name: str) -> Path:
    """The folder of a built-in package; Missing when there is none of that name."""
    return of_agent.folder(name, HERE if name in of_agent.names(HERE) else of_agent.HERE)
