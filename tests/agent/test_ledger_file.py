"""The ledger survives restarts; one that makes no sense is kept aside, never obeyed and never lost."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.errors import TdieError
from agent.ledger import Remembered, SqliteLedger
from agent.ordered import Ordered
from agent.wire import Assignment, content_digest

GIVEN = Assignment(cluster="c", node="a", epoch=4, generation=2, digest=content_digest((), ()))
ORDERED = Ordered("boot", {"web.0": ("spec", 12.5)})


async def filled(path: Path) -> Remembered:
    ledger = SqliteLedger(path)
    await ledger.load()
    await ledger.save_epoch(4)
    await ledger.save_assignment(GIVEN, ORDERED)
    await ledger.save_ports({"web.0": 5000, "web.1": 5001})
    await ledger.save_ports({"web.1": 5001})
    await ledger.save_session("s1")
    await ledger.close()
    return Remembered(4, GIVEN, ORDERED, {"web.1": 5001}, "s1")


async def loaded(path: Path) -> Remembered:
    ledger = SqliteLedger(path)
    try:
        return await ledger.load()
    finally:
        await ledger.close()


async def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    assert await loaded(path) == Remembered()
    held = await filled(path)
    assert await loaded(path) == held


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1500])


def scramble(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for at in range(100, len(data), 7):
        data[at] ^= 0xA5
    path.write_bytes(bytes(data))


def garbage(path: Path) -> None:
    path.write_bytes(b"not a database" * 200)


def newer(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version=99")
    db.close()


def nonsense(path: Path) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("UPDATE facts SET value = '{\"wire\": 7}' WHERE name = 'assignment'")
    db.close()


@pytest.mark.parametrize("damage", [truncate, scramble, garbage, newer, nonsense])
async def test_damage_is_kept_aside(damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    await filled(path)
    damage(path)
    found = await loaded(path)
    assert "it is kept as ledger.sqlite.bad-1" in found.rebuilt
    assert found == Remembered(rebuilt=found.rebuilt)
    assert (tmp_path / "ledger.sqlite.bad-1").exists()
    held = await filled(path)
    assert await loaded(path) == held


async def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = SqliteLedger(path)
    await ledger.load()
    other = sqlite3.connect(path)
    other.executescript("DROP TABLE facts")
    other.close()
    with pytest.raises(TdieError) as caught:
        await ledger.save_epoch(9)
    assert caught.value.code == "LEDGER_WRITE"
    await ledger.close()
