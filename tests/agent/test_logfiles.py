"""Logs stay bounded while programs that know nothing of it go on writing."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent import logfiles
from agent.logfiles import FORGOTTEN, begin_anew, older, part, tail, tidy

LARGEST = 100_000


def everybody(_replica: str) -> bool:
    return True


def nobody(_replica: str) -> bool:
    return False


def test_the_writer_goes_on_at_the_beginning_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "web.0.log"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        for number in range(3):
            os.write(descriptor, f"line {number}\n".encode())
            begin_anew(path, 2, LARGEST)
        os.write(descriptor, b"line 3\n")
    finally:
        os.close(descriptor)
    assert path.read_text() == "line 3\n"
    assert [found.read_text() for found in older(path)] == ["line 2\n", "line 1\n"]  # two parts stay
    assert part(path, 1).stat().st_mode & 0o777 == 0o600


def test_no_older_part_stays_when_none_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "web.0.log"
    path.write_text("much\n")
    begin_anew(path, 0, LARGEST)
    assert (path.read_text(), older(path)) == ("", [])


def test_the_end_of_a_log_is_read_over_its_parts(tmp_path: Path) -> None:
    path = tmp_path / "web.0.log"
    assert tail(path, 5) == ""
    part(path, 1).write_text("a\nb\nc\n")
    path.write_text("d\n")
    assert tail(path, 3) == "b\nc\nd\n"
    assert tail(path, 1) == "d\n"
    assert tail(path, 9, limit=4) == "c\nd\n"


def test_only_what_is_large_is_begun_anew_and_only_what_left_long_ago_is_deleted(tmp_path: Path) -> None:
    small, large = tmp_path / "small.0.log", tmp_path / "large.0.log"
    small.write_text("x")
    large.write_bytes(b"x" * (LARGEST + 1))
    done = tidy(tmp_path, LARGEST, 3, nobody)
    assert done.lines == [f"large.0.log: {LARGEST + 1} bytes, begun anew"]
    assert (small.read_text(), large.read_text()) == ("x", "")
    long_ago = time.time() - FORGOTTEN - 10
    for path in (small, large):
        os.utime(path, (long_ago, long_ago))
    assert tidy(tmp_path, LARGEST, 3, lambda replica: replica == "small.0").lines == [
        "large.0.log: deleted, its replica left long ago"
    ]
    assert sorted(found.name for found in tmp_path.iterdir()) == ["small.0.log"]


FLOOD = """
import os, sys
line = b"x" * 99 + b"\\n"
for _ in range(20_000):
    os.write(1, line)
"""


def test_a_flood_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "web.0.log"
    with path.open("ab") as log:
        flood = subprocess.Popen([sys.executable, "-c", FLOOD], stdout=log)
    try:
        while flood.poll() is None:
            tidy(tmp_path, LARGEST, 2, everybody)
            time.sleep(0.005)
    finally:
        flood.kill()
        flood.wait(10)
    tidy(tmp_path, LARGEST, 2, everybody)
    assert path.stat().st_size <= LARGEST
    assert path.stat().st_blocks * 512 <= LARGEST + 8192  # no hole where the writer was before
    assert len(older(path)) == 2
    for found in older(path):
        assert found.stat().st_size <= logfiles.FLOOD * LARGEST + 200  # and a line that says so
        lines = found.read_text().splitlines()
        assert all(set(line) == {"x"} for line in lines[1:])
        assert set(lines[0]) == {"x"} or "were dropped" in lines[0]


@pytest.mark.parametrize("line", [b"x" * 99 + b"\n", b"x" * 100])
def test_of_a_flood_the_end_stays_and_the_rest_is_counted(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "web.0.log"
    path.write_bytes(line * LARGEST)  # a hundred times too much
    began = time.monotonic()
    done = tidy(tmp_path, LARGEST, 3, everybody)
    assert time.monotonic() - began < 1
    (newest,) = older(path)
    told, _, rest = newest.read_bytes().partition(b"\n")
    assert (
        told
        == f"[tdie] {done.dropped['web.0']} bytes of this log were dropped: it grew faster than it is kept".encode()
    )
    assert len(rest) == 100 * LARGEST - done.dropped["web.0"] <= LARGEST
    assert path.stat().st_size == 0


async def test_a_flood_is_a_problem_of_the_node_until_it_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str]] = []
    for name in ("LOOK", "LOOK_AT_FLOOD", "OVER_AFTER"):
        monkeypatch.setattr(logfiles, name, 0.01 if name != "OVER_AFTER" else 0.2)
    (tmp_path / "web.0.log").write_bytes(b"x\n" * (10 << 20))
    keeping = logfiles.keep_bounded(
        tmp_path, largest=LARGEST, keep=1, here=everybody, problem=lambda *said: told.append(said)
    )
    task = asyncio.create_task(keeping, name="keep")
    async with asyncio.timeout(10):
        while ("LOG_FLOOD", "web.0: 19 MiB of its log were dropped") not in told or told[-1] != ("LOG_FLOOD", ""):
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_what_cannot_be_tidied_is_said_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    looks: list[int] = []

    def fails(*_: object) -> object:
        looks.append(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logfiles, "tidy", fails)
    monkeypatch.setattr(logfiles, "LOOK", 0.001)
    task = asyncio.create_task(
        logfiles.keep_bounded(tmp_path, largest=1, keep=1, here=everybody, problem=lambda *_: None)
    )
    async with asyncio.timeout(5):
        while len(looks) < 3:
            await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
