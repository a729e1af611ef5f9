"""Commands that run something: up, down, controller, agent."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from reconciler.cli.main import app
from reconciler.cli.out import say


@app.command
def up(
    repository: str = ".",
    *,
    ref: str = "main",
    data: Path = Path(".tdie"),
    detach: Annotated[bool, Parameter(negative=())] = False,
    deadline: float = 120.0,
    controllers: int = 1,
) -> int:
    """Run the whole system on this machine: Consul, controllers, and an agent for every node that the repository lists.

    Stays in the foreground and shows what happens; Ctrl-C stops everything it started.

    Parameters
    ----------
    repository
        Git repository: a folder or a URL. Its branch is followed: push or commit to change what runs.
    ref
        Branch to follow.
    data
        Folder for everything that is kept.
    detach
        Return when every replica is healthy (0) or the deadline has passed (1); the system stays.
    deadline
        Seconds that --detach waits.
    controllers
        How many controllers; one of them leads.
    """
    from reconciler.detached import run_detached
    from reconciler.local import run_foreground
    from reconciler.up_request import UpRequest

    request = UpRequest(repository=repository, ref=ref, data=data.resolve(), controllers=controllers)
    return run_detached(request, deadline) if detach else asyncio.run(run_foreground(request))


@app.command
def down(*, data: Path = Path(".tdie")) -> int:
    """Stop everything that 'tdie up' started with this data folder, and say what is left, if anything."""
    from reconciler.detached import stop

    left = stop(data.resolve())
    for line in left:
        say(f"still there: {line}")
    if not left:
        say("everything is stopped")
    return 1 if left else 0


@app.command
def controller(
    *,
    config: Path | None = None,
    cluster: str | None = None,
    repository: str | None = None,
    ref: str | None = None,
    name: str | None = None,
    data: Path | None = None,
    bind: str | None = None,
    port: int | None = None,
    advertise: str | None = None,
    consul: str | None = None,
    token_file: Path | None = None,
    people_file: Path | None = None,
    consul_token_file: Path | None = None,
    beat_ttl: float | None = None,
    agent_ttl: float | None = None,
    log_format: str | None = None,
    log_level: str | None = None,
) -> int:
    """Run one controller of a cluster. Any number may run; one leads, the others stand by.

    Parameters
    ----------
    config
        YAML file with these settings; TDIE_CONTROLLER_* in the environment and flags go over it.
    """
    flags = {name_: value for name_, value in locals().items() if name_ != "config"}
    from agent import logs
    from reconciler.app import run_controller
    from reconciler.settings import read_settings

    settings = read_settings(config, flags)
    logs.set_up(settings.log_level, settings.log_format)
    os.umask(0o077)
    asyncio.run(run_controller(settings))
    return 0


@app.command(help_flags=[], version_flags=[])
def agent(*words: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> int:
    """Run the agent of this machine; the same as tdie-agent, with the same options."""
    os.execv(sys.executable, [sys.executable, "-m", "agent", *words])
