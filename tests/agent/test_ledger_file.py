"""The ledger survives restarts; one that makes no sense is kept aside, never obeyed and never lost."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.errors import Waiting
from agent.ledger import Remembered, SqliteLedger
from agent.ordered import Ordered
from agent.wire import Assignment, PackageRef, ReplicaOrder, ReplicaSpec, content_digest
from tests.disk_trouble import counted

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


WANTED = ReplicaOrder(
    replica="web.0",
    instance="web",
    spec_hash="s",
    spec=ReplicaSpec(package=PackageRef(name="web", version="1.0.0", digest="d")),
)
REAL = GIVEN.model_copy(update={"replicas": (WANTED,), "digest": content_digest((), (WANTED,))})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A closed ledger, as bytes."""

    async def write() -> None:
        ledger = SqliteLedger(path)
        await ledger.load()
        await ledger.save_epoch(4)
        await ledger.save_assignment(REAL, ORDERED)
        await ledger.close()

    path = tmp_path_factory.mktemp("whole") / "ledger.sqlite"
    asyncio.run(write())
    return path.read_bytes()


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1), st.booleans(), st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), max_size=3))
def test_no_flipped_byte_and_no_cut_is_ever_obeyed(
    whole: bytes, cut: float, is_cut: bool, flips: list[tuple[float, int]]
) -> None:
    damaged = bytearray(whole[: int(cut * len(whole))] if is_cut else whole)
    used = [at for at, byte in enumerate(damaged) if byte]  # the rest of a page is empty
    for at, bits in flips if used else ():
        damaged[used[int(at * (len(used) - 1))]] ^= bits
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.sqlite"
        path.write_bytes(damaged)
        found = asyncio.run(loaded(path))
        kept = list(Path(folder).glob("*.bad-1"))
    assert found.assignment in (REAL, None)
    assert bool(found.rebuilt) == bool(kept)


async def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with counted(tmp_path) as disk:
        ledger = SqliteLedger(path)
        await ledger.load()
        for statement in (1, 2, 3):  # begin, insert, commit
            disk.fail_at(statement, errno.ENOSPC, lasting=True)
            with pytest.raises(Waiting) as caught:
                await ledger.save_epoch(9)
            assert caught.value.code == "LEDGER_WRITE"
        disk.heal()
        await ledger.close()
        again = SqliteLedger(path)
        assert (await again.load()).epoch == 0
        await again.close()


async def test_a_good_file_on_a_bad_disk_is_not_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    first = SqliteLedger(path)
    await first.load()
    await first.save_epoch(9)
    await first.close()
    holder = sqlite3.connect(path)
    holder.execute("PRAGMA locking_mode=EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    again = SqliteLedger(path)
    with pytest.raises(Waiting, match=r"LEDGER_WRITE ledger.sqlite: database is locked"):
        await again.load()
    holder.close()
    assert (await again.load()).epoch == 9
    assert not list(tmp_path.glob("*.bad*"))  # noqa: ASYNC240 - a test may block
    await again.close()
