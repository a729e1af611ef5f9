"""PUBLIC: a keeper for a data folder, started if there is none."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

from agent.errors import Waiting
from agent.keeper.client import KeeperClient
from agent.keeper.identity import code_identity

SOCKET = "keeper.sock"
LOG = "keeper.log"
PATIENCE = 15.0
COMMAND = (sys.executable, "-I", "-m", "agent.keeper")


async def ensure_keeper(data_dir: Path) -> KeeperClient:
    """A client of the folder's keeper, which answers. One is started, detached from us, when none does.

    Any number of agents may call this at once: the lock in the folder lets only one keeper live. Raises Waiting
    (KEEPER_GONE) when none answers within 15 s.
    """
    data = _whole(data_dir)
    client = KeeperClient(data / SOCKET)
    if await _answers(client):
        return client
    await asyncio.to_thread(_start, data)
    try:
        async with asyncio.timeout(PATIENCE):
            while not await _answers(client):
                await asyncio.sleep(0.02)
    except TimeoutError as error:
        await client.aclose()
        raise Waiting(f"no keeper came up for {data}", code="KEEPER_GONE", hint=f"see {data / LOG}") from error
    return client


async def upgrade_keeper(client: KeeperClient) -> dict[str, Any]:
    """The keeper that answers runs the code that runs us; what that changed, which is nothing when it did already.

    Raises Waiting when none answers, Invalid (VERSION_SKEW) for one from before keepers could do that, Refused when it could
    not: then it goes on as it is.
    """
    code = await asyncio.to_thread(code_identity)
    if (await client.about()).get("code") == code:
        return {}
    return await client.upgrade(COMMAND, code)


async def _answers(client: KeeperClient) -> bool:
    try:
        await client.about()
    except Waiting:
        return False
    return True


def _whole(folder: Path) -> Path:
    return Path(folder).absolute()


def _start(data: Path) -> None:
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    command = [*COMMAND, "--detach", "--socket", str(data / SOCKET), "--data", str(data)]
    with (data / LOG).open("ab") as log:
        (data / LOG).chmod(0o600)
        subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            timeout=PATIENCE,
            check=False,  # whether a keeper answers is what counts
        )
