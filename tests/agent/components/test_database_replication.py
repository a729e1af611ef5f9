"""Replication between real databases: SQLite files and a PostgreSQL of our own."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from agent.components import folder
from agent.consul.process import free_ports
from agent.sdk import ObjectState, SettingsError
from agent.sdk.testing import Running, running, until
from tests.brokers import Server
from tests.servers import find

PACKAGE = folder("database-replication")
WHEN = datetime(2026, 3, 29, 1, 30, tzinfo=UTC)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Server]:
    """A PostgreSQL of our own, run by an unprivileged user."""
    home = Path(tempfile.mkdtemp(prefix="tdie-postgres-"))
    user = pwd.getpwnam("nobody") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
    os.chown(home, user.pw_uid, user.pw_gid)
    who: dict[str, Any] = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if os.getuid() == 0 else {}
    made = [str(find("initdb")), "-D", str(home / "data"), "-U", "tdie", "-A", "trust", "-E", "UTF8", "--no-sync"]
    made += ["--locale-provider=icu", "--icu-locale=en-US", "--locale=C.UTF-8"]  # sorts otherwise than SQLite does
    subprocess.run(made, check=True, capture_output=True, timeout=60, cwd=home, **who)
    (port,) = free_ports(1)
    settings = {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "fsync": "off",
        "timezone": "Asia/Tokyo",
    }
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    command = [str(find("postgres")), "-D", str(home / "data"), "-p", str(port), *options]

    def ready() -> bool:
        asked = [str(find("pg_isready")), "-h", "127.0.0.1", "-p", str(port), "-q"]
        return subprocess.run(asked, check=False, timeout=10).returncode == 0

    server = Server(command, port, home.with_suffix(".log"), ready=ready, user=user.pw_uid if who else None)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(home, ignore_errors=True)
        home.with_suffix(".log").unlink(missing_ok=True)


NEEDS_POSTGRES = pytest.mark.server("initdb")


@pytest.fixture(
    params=[
        "sqlite→sqlite",
        pytest.param("sqlite→postgres", marks=NEEDS_POSTGRES),
        pytest.param("postgres→sqlite", marks=NEEDS_POSTGRES),
        pytest.param("postgres→postgres", marks=NEEDS_POSTGRES),
    ]
)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """Addresses of an empty source and an empty target."""
    addresses = []
    for side, kind in zip(("source", "target"), request.param.split("→"), strict=True):
        if kind == "sqlite":
            addresses.append(f"sqlite:///{tmp_path / side}.db")
            continue
        server = request.getfixturevalue("postgres")
        address = f"postgresql+psycopg://tdie@127.0.0.1:{server.port}/postgres"
        name = f"{side}_{os.getpid()}_{abs(hash(request.node.nodeid))}"
        server_of = sa.create_engine(address, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with server_of.connect() as connection:
            connection.execute(sa.text(f"create database {name}"))
        addresses.append(f"postgresql://tdie@127.0.0.1:{server.port}/{name}")
    return addresses[0], addresses[1]


class Database:
    """A database as the test sees it."""

    def __init__(self, address: str) -> None:
        self._engine = sa.create_engine(
            address.replace("postgresql://", "postgresql+psycopg://"), poolclass=sa.NullPool
        )

    def do(self, *statements: str, **values: Any) -> None:
        with self._engine.begin() as connection:
            for statement in statements:
                connection.execute(sa.text(statement), values or None)

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with self._engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.text(query)).all()]


def made(address: str) -> Database:
    """The source with a table of many kinds of columns."""
    database = Database(address)
    zone = "timestamptz" if address.startswith("postgres") else "timestamp"
    database.do(
        "create table orders (id varchar(20) not null, line integer not null, name varchar(50), price numeric(10, 2), "
        f"weight double precision, paid boolean, at {zone}, day date, primary key (id, line))"
    )
    return database


def insert(database: Database, *keys: tuple[str, int], name: str = "ü") -> None:
    for id_, line in keys:
        database.do(
            "insert into orders values (:id, :line, :name, :price, 0.1, true, :at, '2026-01-31')",
            id=id_, line=line, name=name, price="19.90", at=WHEN if "psycopg" in str(database._engine.url) else str(WHEN)[:19],
        )  # fmt: skip


KEYS = [(id_, line) for id_ in ("A", "B", "a", "b", "Ä", "é", "z10", "z9") for line in (1, 2)]
ALL = "select id, line, name from orders"


def replicating(addresses: tuple[str, str], *tables: Any, **settings: Any) -> Any:
    given = {"source": addresses[0], "target": addresses[1], "tables": list(tables), "interval": "50ms", "chunkSize": 3}
    return running(PACKAGE, {**given, **settings}, name="copy.0")


async def same(run: Running, source: Database, target: Database, query: str = ALL) -> None:
    """Source and target say the same."""

    def equal() -> bool:
        try:
            return sorted(source.rows(query)) == sorted(target.rows(query))
        except sa.exc.DBAPIError:
            return False  # no table yet

    await until(equal, 20, lambda: f"{run.state} {run.cause} {[m.content for m in run.published]}")


async def test_rows_are_copied_changed_and_deleted(pair: tuple[str, str]) -> None:
    source, target = made(pair[0]), Database(pair[1])
    insert(source, *KEYS)
    async with replicating(pair, "orders") as run:
        await same(run, source, target)
        done = await run.message("ReplicationDone")
        assert (done.content["read"], done.content["written"], done.content["deleted"]) == (16, 16, 0)
        insert(source, ("C", 1), ("Z", 1), ("0", 1))
        source.do("update orders set name = 'changed' where id = 'a'", "delete from orders where id in ('B', 'é')")
        await same(run, source, target)
        target.do("delete from orders where id = 'Z'", "update orders set name = 'vandalised' where id = 'b'")
        target.do(
            "insert into orders (id, line) values ('zz', 1), ('000', 2), ('Aa', 3), ('Ab', 1), ('Ac', 1), ('Ad', 1)"
        )
        await same(run, source, target)
        await run.until(lambda: len(run.published) >= 3)
        settled = len(run.published)
        await asyncio.sleep(0.5)
        assert len(run.published) <= settled + 1, "what is equal is not written again"
        assert run.state is ObjectState.STARTED
    kept = target.rows("select price, weight, paid, at, day from orders where id = 'A' and line = 1")[0]
    assert [Decimal(str(kept[0])), kept[1], bool(kept[2])] == [Decimal("19.90"), 0.1, True]
    told = kept[3].astimezone(UTC) if isinstance(kept[3], datetime) and kept[3].tzinfo else kept[3]
    assert str(told)[:19] == "2026-03-29 01:30:00"
    assert str(kept[4]) == "2026-01-31"


async def test_a_watermark_brings_what_is_new(pair: tuple[str, str]) -> None:
    source, target = Database(pair[0]), Database(pair[1])
    source.do("create table events (id integer primary key, version bigint, text varchar(50))")
    source.do(*(f"insert into events values ({n}, {n // 4}, 'v{n}')" for n in range(20)))
    table = {"name": "events", "target": "copied", "mode": "watermark", "watermark": "version", "overlap": 1}
    query = "select id, version, text from "
    async with replicating(pair, table):
        await until(lambda: _rows(target, f"{query} copied") == source.rows(f"{query} events"), 20)
        source.do("insert into events values (100, 4, 'the same moment')", "insert into events values (101, 9, 'new')")
        source.do("update events set version = 10, text = 'changed' where id = 3")
        await until(lambda: _rows(target, f"{query} copied") == sorted(source.rows(f"{query} events")), 20)
        source.do("insert into events values (102, 9, 'committed late, within the overlap')")
        await until(lambda: len(_rows(target, f"{query} copied")) == 23, 20)
        source.do("delete from events where id = 5")
    assert len(target.rows(f"{query} copied")) == 23, "a watermark sees no deleted rows"
    assert target.rows("select position from tdie_replication") == [("[10]",)]


def _rows(database: Database, query: str) -> list[tuple[Any, ...]]:
    try:
        return sorted(database.rows(query))
    except sa.exc.DBAPIError:
        return []


async def test_an_empty_source_does_not_empty_the_target(pair: tuple[str, str]) -> None:
    source, target = made(pair[0]), Database(pair[1])
    insert(source, ("A", 1), ("A", 2))
    async with replicating(pair, "orders") as run:
        await same(run, source, target)
        source.do("delete from orders")
        failed = await run.message("ReplicationFailed")
        assert "SOURCE_EMPTY" in failed.content["error"]
        assert len(target.rows(ALL)) == 2
    async with replicating(pair, {"name": "orders", "allowEmpty": True}) as run:
        await until(lambda: target.rows(ALL) == [])


async def test_deletes_and_columns_can_be_left_out(pair: tuple[str, str]) -> None:
    source, target = made(pair[0]), Database(pair[1])
    insert(source, ("A", 1), ("B", 1))
    async with replicating(pair, {"name": "orders", "columns": ["name"], "deletes": False}) as run:
        await same(run, source, target)
        source.do("delete from orders where id = 'A'", "update orders set name = 'x' where id = 'B'")
        await until(lambda: ("B", 1, "x") in target.rows(ALL))
        assert len(target.rows(ALL)) == 2
    assert len(target.rows("select * from orders")[0]) == 3


KILLED = """
    import asyncio, sys
    from pathlib import Path
    from agent.sdk.testing import running

    async def main():
        settings = {"source": sys.argv[2], "target": sys.argv[3], "tables": ["numbers"], "chunkSize": 20, "interval": 3600}
        async with running(Path(sys.argv[1]), settings, name="copy.0"):
            await asyncio.sleep(60)

    asyncio.run(main())
"""


async def test_a_killed_process_goes_on_where_it_was(tmp_path: Path) -> None:
    addresses = f"sqlite:///{tmp_path}/source.db", f"sqlite:///{tmp_path}/target.db"
    source, target = Database(addresses[0]), Database(addresses[1])
    source.do(
        "create table numbers (n integer primary key, t text)",
        "with recursive c(n) as (select 1 union all select n + 1 from c where n < 20000) insert into numbers select n, 't' from c",
    )
    process = subprocess.Popen(  # noqa: ASYNC220 - it runs beside us
        [sys.executable, "-c", textwrap.dedent(KILLED), str(PACKAGE), *addresses]
    )
    try:
        await until(lambda: len(_rows(target, "select n from numbers")) > 200, 30)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (position,) = target.rows("select position from tdie_replication")[0]
    begun = len(target.rows("select n from numbers"))
    assert position == f"[{begun}]", "the place is kept with the rows"
    assert 200 < begun < 20000
    async with replicating(addresses, "numbers", chunkSize=5000, interval=3600) as run:
        done = await run.message("ReplicationDone", within=30)
    assert (done.content["read"], done.content["written"]) == (20000 - begun, 20000 - begun)
    assert target.rows("select count(*), sum(n) from numbers") == [(20000, 20000 * 20001 // 2)]
    assert target.rows("select * from tdie_replication") == []


@NEEDS_POSTGRES
async def test_a_database_that_comes_back_is_copied_again(postgres: Server, tmp_path: Path) -> None:
    source = Database(f"postgresql://tdie@127.0.0.1:{postgres.port}/postgres")
    addresses = f"postgresql://tdie@127.0.0.1:{postgres.port}/postgres", f"sqlite:///{tmp_path}/target.db"
    target = Database(addresses[1])
    source.do("drop table if exists ups", "create table ups (id integer primary key)", "insert into ups values (1)")
    async with replicating(addresses, "ups") as run:
        await until(lambda: _rows(target, "select id from ups") == [(1,)])
        await asyncio.to_thread(postgres.stop, kill=True)
        await run.message("ReplicationFailed", within=20)
        await asyncio.to_thread(postgres.start)
        source.do("insert into ups values (2)")
        await until(lambda: _rows(target, "select id from ups") == [(1,), (2,)], 20)


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ("nothing", "there is no table nothing in the source"),
        ("keyless", "keyless has no primary key"),
        ({"name": "keyless", "key": ["other"]}, "keyless has no column other in the source"),
        (
            {"name": "keyless", "key": ["a"], "mode": "watermark", "watermark": "b"},
            "keyless has no column b in the source",
        ),
    ],
)
async def test_a_wrong_table_fails_the_component(table: Any, why: str, tmp_path: Path) -> None:
    addresses = f"sqlite:///{tmp_path}/source.db", f"sqlite:///{tmp_path}/target.db"
    Database(addresses[0]).do("create table keyless (a integer)")
    async with replicating(addresses, table) as run:
        await run.until(lambda: run.state is ObjectState.ERRORED)
        assert f"TABLE_INVALID {why}" in run.cause


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"tables": []}, "names no table"),
        ({"tables": [{"name": "a", "mode": "watermark"}]}, "mode watermark needs the column"),
        ({"tables": [{"name": "a", "mode": "other"}]}, "'mode' must be one of compare, watermark"),
        ({"tables": [{"name": "a", "keys": ["b"]}]}, "'keys' is not known"),
        ({"source": "file:/nothing/there"}, "'source' names /nothing/there"),
        ({"source": "nonsense with hunter2"}, "DATABASE_URL"),
        ({"source": "oracle+none://u:hunter2@h/d"}, "DATABASE_URL"),
        ({"chunkSize": 0}, "must be positive"),
    ],
)
async def test_wrong_settings_are_named(settings: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=why) as told:
        async with replicating((f"sqlite:///{tmp_path}/a.db", f"sqlite:///{tmp_path}/b.db"), "a", **settings):
            pass
    assert type(told.value).__name__ in (SettingsError.__name__, "WrongTable")
    assert "hunter2" not in str(told.value)


async def test_passwords_are_read_where_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "address").write_text(f"sqlite:///{tmp_path}/source.db\n")
    monkeypatch.setenv("TARGET", f"sqlite:///{tmp_path}/target.db")
    source, target = Database(f"sqlite:///{tmp_path}/source.db"), Database(f"sqlite:///{tmp_path}/target.db")
    source.do("create table t (id integer primary key)", "insert into t values (7)")
    async with replicating((f"file:{tmp_path}/address", "env:TARGET"), "t"):
        await until(lambda: _rows(target, "select id from t") == [(7,)])
