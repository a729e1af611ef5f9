"""The file and its thread: many writes share an fsync, a piece that fails fails alone, and kill -9 loses nothing accepted."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from agent.bus.file import BusFile
from agent.bus.store import ThreadStore
from agent.bus.values import Envelope
from agent.errors import Waiting

WRITER = """
import asyncio, sys
from pathlib import Path
from agent.bus.store import ThreadStore
from agent.bus.values import Envelope

async def main():
    store = ThreadStore(Path(sys.argv[1]))
    await store.open()
    for n in range(1_000_000):
        entry = (n + 1, Envelope(f"m{n}", "t", "", b"x" * 1000, ("shop",)))
        await store.do(lambda file: file.accept([entry], 0.0), durable=True)
        print(n, flush=True)

asyncio.run(main())
"""


async def test_what_comes_together_is_written_together(tmp_path: Path) -> None:
    store = ThreadStore(tmp_path / "bus.sqlite")
    assert await store.open() == ""
    order: list[int] = []

    def work(n: int, file: BusFile) -> tuple[int, int]:
        order.append(n)
        return n, file.db.total_changes

    answers = await asyncio.gather(*(store.do(lambda file, n=n: work(n, file)) for n in range(100)))  # type: ignore[misc]
    assert [n for n, _ in answers] == order == list(range(100))
    await store.close()


async def test_a_piece_that_fails_fails_alone(tmp_path: Path) -> None:
    store = ThreadStore(tmp_path / "bus.sqlite")
    await store.open()

    def broken(file: BusFile) -> None:
        file.remember("half", "done")
        raise KeyError("a bug")

    good, bad, also_good = await asyncio.gather(
        store.do(lambda file: file.remember("a", "1"), durable=True),
        store.do(broken),
        store.do(lambda file: file.remember("b", "2")),
        return_exceptions=True,
    )
    assert (good, also_good) == (None, None)
    assert isinstance(bad, KeyError)
    assert await store.do(lambda file: [file.fact(name) for name in ("a", "b", "half")]) == ["1", "2", ""]
    await store.close()


async def test_what_the_disk_refuses_is_a_typed_error(tmp_path: Path) -> None:
    store = ThreadStore(tmp_path / "bus.sqlite")
    await store.open()
    await store.do(lambda file: file.db.execute("PRAGMA max_page_count=20").fetchone())
    entry = (1, Envelope("m", "t", "", b"x" * 1_000_000, ("shop",)))
    with pytest.raises(Waiting, match=r"BUS_WRITE bus.sqlite: database or disk is full"):
        await store.do(lambda file: file.accept([entry], 0.0), durable=True)
    assert await store.do(lambda file: file.deliveries()) == ([], 0)
    await store.close()
    folder = ThreadStore(tmp_path)
    with pytest.raises(Waiting, match="BUS_WRITE"):
        await folder.open()


def test_kill_9_loses_nothing_that_was_accepted(tmp_path: Path) -> None:
    path = tmp_path / "bus.sqlite"
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [int(process.stdout.readline()) for _ in range(50)]
        os.kill(process.pid, signal.SIGKILL)
        said += [int(line) for line in process.stdout if line.endswith("\n")]
    file = BusFile(path)
    found, last = file.deliveries()
    assert [delivery.id for delivery in found][: len(said)] == [f"m{n}" for n in said]
    assert last >= len(said) >= 50
    assert file.accept([(last + 1, Envelope("m0", "t", "", b"", ("shop", "audit")))], 0.0) == [("audit",)]
    file.close()
