"""A table in two databases: found, made, read in ranges of its key, written without doubles. Blocking: for a thread."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite

from agent.errors import Invalid, Refused

Key = tuple[Any, ...]
STATE = "tdie_replication"


class WrongTable(Invalid):
    """A table cannot be replicated as the settings say; trying again is useless."""

    code = "TABLE_INVALID"


class Emptied(Refused):
    """The source has no row where the target has some: taken for a mistake unless the settings say otherwise."""

    code = "SOURCE_EMPTY"


@dataclass(frozen=True)
class Wanted:
    """One table of the settings."""

    name: str
    target: str = ""
    mode: Literal["compare", "watermark"] = "compare"
    watermark: str = ""
    overlap: float = 0.0
    key: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    deletes: bool = True
    allow_empty: bool = False

    def __post_init__(self) -> None:
        if (self.mode == "watermark") != bool(self.watermark):
            raise ValueError(f"table {self.name}: mode watermark needs the column 'watermark', and only it does")


def engine(url: str, password: str | None) -> sa.Engine:
    """A pool for this database. WrongTable when the URL makes no sense or its driver is not there; without its password."""
    try:
        parsed = sa.make_url(url)
        if password is not None:
            parsed = parsed.set(password=password)
        if parsed.drivername in ("postgresql", "postgres"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        limits: dict[str, Any] = {"connect_timeout": 10} if parsed.get_backend_name() == "postgresql" else {}
        if parsed.get_backend_name() == "sqlite":
            limits = {"timeout": 30}
        return sa.create_engine(parsed, pool_pre_ping=True, connect_args=limits, hide_parameters=True)
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError, ImportError) as error:
        raise WrongTable(f"the database address cannot be used: {type(error).__name__}", code="DATABASE_URL") from None


class Pair:
    """The same table in source and target, ready to be compared and copied."""

    def __init__(self, source: sa.Engine, target: sa.Engine, wanted: Wanted, owner: str, create: bool) -> None:
        """Both are there and fit, or WrongTable says what is missing. The target's is made when it may be."""
        self.wanted, self._owner = wanted, owner
        self._source, self._target = source, target
        self._from = _reflected(source, wanted.name, "source")
        keys = wanted.key or tuple(column.name for column in self._from.primary_key)
        names = wanted.columns or tuple(column.name for column in self._from.columns)
        if not keys:
            raise WrongTable(f"{wanted.name} has no primary key: name its 'key' columns")
        needed = (*names, *keys, *((wanted.watermark,) if wanted.watermark else ()))
        if missing := sorted(set(needed) - set(self._from.columns.keys())):
            raise WrongTable(f"{wanted.name} has no column {', '.join(missing)} in the source")
        self.keys = keys
        self.columns = (*keys, *(name for name in names if name not in keys))
        if wanted.watermark and wanted.watermark not in self.columns:
            self.columns = (*self.columns, wanted.watermark)
        self._to = self._found_or_made(create)
        if missing := sorted(set(self.columns) - set(self._to.columns.keys())):
            raise WrongTable(f"{wanted.target or wanted.name} has no column {', '.join(missing)} in the target")

    def key_of(self, row: Sequence[Any]) -> Key:
        """The key is what each row begins with."""
        return tuple(row[: len(self.keys)])

    # ------------------------------------------------------------------------------------------------------- reading

    def chunk(self, after: Key | None, size: int) -> list[Sequence[Any]]:
        """The next rows of the source by key."""
        return self._page(self._source, self._from, after, None, size)

    def there(self, after: Key | None, until: Key | None, size: int) -> list[Sequence[Any]]:
        """Rows of the target after one key and up to the other."""
        return self._page(self._target, self._to, after, until, size)

    def marked(self, mark: Any, after: Key | None, size: int) -> list[Sequence[Any]]:
        """The next rows of the source by watermark and then key: from `mark` on, or beyond (`mark`, `after`)."""
        column = self._from.c[self.wanted.watermark]
        order = [column, *_ordered(self._source, self._from, self.keys)]
        query = sa.select(*(self._from.c[name] for name in self.columns)).order_by(*order).limit(size)
        query = query.where(column.is_not(None))
        if mark is not None:
            query = query.where(column >= mark if after is None else _beyond(order, (mark, *after)))
        with self._source.connect() as connection:
            return list(connection.execute(query).all())

    def mark_of(self, row: Sequence[Any]) -> Any:
        """The watermark of one of these rows."""
        return row[self.columns.index(self.wanted.watermark)]

    def emptied(self) -> bool:
        """Whether the source has no row, and the target has some."""
        return not self.chunk(None, 1) and bool(self.there(None, None, 1))

    def _page(
        self, database: sa.Engine, table: sa.Table, after: Key | None, until: Key | None, size: int
    ) -> list[Sequence[Any]]:
        order = _ordered(database, table, self.keys)
        query = sa.select(*(table.c[name] for name in self.columns)).order_by(*order).limit(size)
        if after is not None:
            query = query.where(_beyond(order, _fitting(table, self.keys, after)))
        if until is not None:
            query = query.where(sa.not_(_beyond(order, _fitting(table, self.keys, until))))
        with database.connect() as connection:
            return list(connection.execute(query).all())

    # ------------------------------------------------------------------------------------------------------- writing

    def write(self, rows: Sequence[Sequence[Any]], gone: Sequence[Key], position: str | None) -> None:
        """In one transaction: these rows are in the target, those keys are not, and the position is remembered."""
        with self._target.begin() as connection:
            if rows:
                fitting = [_fitting(self._to, self.columns, row) for row in rows]
                self._upsert(connection, [dict(zip(self.columns, row, strict=True)) for row in fitting])
            for key in gone:
                where = [self._to.c[name] == value for name, value in zip(self.keys, key, strict=True)]
                connection.execute(sa.delete(self._to).where(*where))
            self._remember(connection, position)

    def position(self) -> str | None:
        """Where the last process left off."""
        query = sa.select(_state.c.position).where(*self._mine())
        with self._target.connect() as connection:
            return connection.execute(query).scalar()

    def _remember(self, connection: sa.Connection, position: str | None) -> None:
        connection.execute(sa.delete(_state).where(*self._mine()))
        if position is not None:
            row = {"owner": self._owner, "table_name": self.wanted.name, "position": position}
            connection.execute(sa.insert(_state), row)

    def _mine(self) -> tuple[sa.ColumnElement[bool], ...]:
        return _state.c.owner == self._owner, _state.c.table_name == self.wanted.name

    def _upsert(self, connection: sa.Connection, rows: list[dict[str, Any]]) -> None:
        others = [name for name in self.columns if name not in self.keys]
        kind = connection.dialect.name
        if kind in ("postgresql", "sqlite"):
            insert = (postgresql.insert if kind == "postgresql" else sqlite.insert)(self._to)
            fresh = {name: insert.excluded[name] for name in others}
            done = insert.on_conflict_do_update(index_elements=list(self.keys), set_=fresh) if others else None
            connection.execute(done if done is not None else insert.on_conflict_do_nothing(), rows)
        elif kind in ("mysql", "mariadb"):
            plain = mysql.insert(self._to)
            names = others or list(self.keys)
            connection.execute(plain.on_duplicate_key_update({name: plain.inserted[name] for name in names}), rows)
        else:
            for row in rows:
                where = [self._to.c[name] == row[name] for name in self.keys]
                connection.execute(sa.delete(self._to).where(*where))
            connection.execute(sa.insert(self._to), rows)

    def _found_or_made(self, create: bool) -> sa.Table:
        name = self.wanted.target or self.wanted.name
        _state.create(self._target, checkfirst=True)
        try:
            return _reflected(self._target, name, "target")
        except WrongTable:
            if not create:
                raise
        schema, _, plain = name.rpartition(".")
        columns: list[sa.Column[Any]] = []
        for column in self.columns:
            kind = self._from.c[column].type.as_generic(allow_nulltype=True)
            if isinstance(kind, sa.Integer) and self._source.dialect.name == "sqlite":
                kind = sa.BigInteger()  # its integers have 64 bits
            if isinstance(kind, sa.String) and (self._source.dialect.name, self._target.dialect.name) == (
                "sqlite",
                "postgresql",
            ):
                kind = sa.Text()  # SQLite does not mind how long a text is
            if isinstance(kind, sa.Numeric) and self._target.dialect.name == "sqlite":
                kind = sa.Float(53)  # it has no exact decimals
            if isinstance(kind, sa.DateTime) and self._target.dialect.name not in ("postgresql", "oracle"):
                kind = sa.DateTime()  # it keeps no zone, so that UTC is kept
            columns.append(sa.Column(column, kind, primary_key=column in self.keys, autoincrement=False))
        made = sa.Table(plain, sa.MetaData(), *columns, schema=schema or None)
        try:
            made.create(self._target)
        except sa.exc.CompileError as error:
            raise WrongTable(f"{name} cannot be made in the target: make it by hand ({error})") from None
        return made


_state = sa.Table(
    STATE,
    sa.MetaData(),
    sa.Column("owner", sa.String(100), primary_key=True),
    sa.Column("table_name", sa.String(200), primary_key=True),
    sa.Column("position", sa.Text, nullable=False),
)


def _reflected(database: sa.Engine, name: str, where: str) -> sa.Table:
    schema, _, plain = name.rpartition(".")
    try:
        return sa.Table(plain, sa.MetaData(), schema=schema or None, autoload_with=database)
    except sa.exc.NoSuchTableError:
        raise WrongTable(f"there is no table {name} in the {where}") from None


def _fitting(table: sa.Table, names: Sequence[str], values: Sequence[Any]) -> tuple[Any, ...]:
    """The values as these columns take them: times without a zone are UTC."""
    return tuple(_time(table.c[name].type, value) for name, value in zip(names, values, strict=True))


def _time(kind: sa.types.TypeEngine[Any], value: Any) -> Any:
    if not isinstance(value, datetime):
        return value
    if getattr(kind, "timezone", False):
        return value if value.tzinfo is not None else value.replace(tzinfo=UTC)
    return value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None)


def _ordered(database: sa.Engine, table: sa.Table, keys: Sequence[str]) -> list[sa.ColumnElement[Any]]:
    """Key columns that sort alike everywhere: texts by their bytes, not by the language of a database."""
    binary = {"postgresql": "C", "mysql": "utf8mb4_bin", "mariadb": "utf8mb4_bin"}.get(database.dialect.name)
    return [
        sa.collate(table.c[name], binary) if binary and isinstance(table.c[name].type, sa.String) else table.c[name]
        for name in keys
    ]


def _beyond(order: Sequence[sa.ColumnElement[Any]], values: Key) -> sa.ColumnElement[bool]:
    """After these values in this order; spelled out, because not every database compares tuples."""
    first, rest = order[0], order[1:]
    later: sa.ColumnElement[bool] = first > values[0]
    return sa.or_(later, sa.and_(first == values[0], _beyond(rest, values[1:]))) if rest else later
