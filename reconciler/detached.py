"""`tdie up --detach` and `tdie down`: the same system without a terminal."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from agent.errors import TdieError
from reconciler.children import Child, alive, leftovers
from reconciler.connect import leader, spot
from reconciler.up_request import UpRequest, owner_of, progress, say, state_file

STOP_WAIT = 70.0  # seconds for everything to stop by itself


def run_detached(request: UpRequest, deadline: float) -> int:
    """The system runs in the background; returns 0 when all is healthy, 1 when the deadline has passed first."""
    return asyncio.run(_detached(request, deadline))


async def _detached(request: UpRequest, deadline: float) -> int:
    request.must_be_down()
    words = [sys.executable, "-m", "reconciler", "up", request.repository, "--ref", request.ref]
    words += ["--data", str(request.data), "--controllers", str(request.controllers)]
    child = Child("up", words, request.data / "logs" / "up.log")
    child.start()
    try:
        async with asyncio.timeout(deadline):
            await _until_converged(request, child)
    except TimeoutError:
        say(f"not everything is healthy after {deadline:g} s; it goes on: tdie status, {child.log}")
        return 1
    except TdieError as error:
        say(str(error))
        return 1
    say("everything is healthy: tdie status shows it, tdie down stops it")
    return 0


async def _until_converged(request: UpRequest, child: Child) -> None:
    headline = ""
    while True:
        if child.ended:
            raise TdieError("it ended at once:\n" + child.tail(), code="UP_FAILED")
        with suppress(TdieError, FileNotFoundError):
            doc = await asyncio.to_thread(status, request)
            if (text := progress(doc)) != headline:
                headline = text
                say(text)
            if doc["converged"] or (doc["settled"] and doc["git"]["rollback"]):
                return
        await asyncio.sleep(0.2)


def status(request: UpRequest) -> dict[str, Any]:
    """The status document of the cluster that this request runs."""
    state = json.loads(request.state.read_text())
    with leader(spot(state["cluster"], state["consul"], Path(state["tokenFile"]))) as master:
        found: dict[str, Any] = master.get("/status")
    return found


def stop(data: Path) -> list[str]:
    """What `tdie up` started with this data folder is stopped; returns what is left, a line each."""
    owner = owner_of(state_file(data))
    if owner is not None:
        say(f"stopping pid {owner} …")
        os.kill(owner, signal.SIGTERM)
        asyncio.run(_until_gone(owner))
    return leftovers(data)


async def _until_gone(pid: int) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(STOP_WAIT):
            while alive(pid):
                await asyncio.sleep(0.05)
