"""All tables of a PostgreSQL database, copied out at one moment, and in again.

PostgreSQL's own COPY does it, over an ordinary connection: ``pg_dump`` would have to be installed
here, in the version of the database or a newer one.  The tables are those that migrations make; the
partitions that they have are made again.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import asyncpg

from runtime.errors import StoreError
from runtime.shown import without_password
from sql import migrations
from sql.database import Table
from sql.postgres import CONNECT_SECONDS, explain

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
_FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, ConnectionError, TimeoutError)

Take = Callable[[bytes], Awaitable[None]]

_MADE = re.compile(r"^(?:--postgresql )?CREATE TABLE (?:IF NOT EXISTS )?(\w+)", re.MULTILINE)
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
_BOUND = re.compile(r"DEFAULT|FOR VALUES FROM \([\w'.+ -]+\) TO \([\w'.+ -]+\)")
_OWN = "schema_migrations"  # which migrating makes and fills itself

USED = ("accounts", "keys", "nodes", "invitations", "ledger", "files", "jobs")
"""Tables that are empty as long as no server was used."""

_TABLES = """
SELECT c.relname, c.relkind = 'p', p.relname, pg_get_expr(c.relpartbound, c.oid),
    ARRAY(SELECT a.attname FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0
        AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum),
    ARRAY(SELECT r.relname FROM pg_constraint f JOIN pg_class r ON r.oid = f.confrelid
        WHERE f.conrelid = c.oid AND f.contype = 'f')
FROM pg_class c
LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
LEFT JOIN pg_class p ON p.oid = i.inhparent
WHERE c.relkind IN ('r', 'p') AND c.relnamespace = CAST(current_schema() AS regnamespace)
ORDER BY c.relname
"""


class TablesOut:
    """The tables of a database as they were at one moment."""

    def __init__(self, connection: Connection, tables: Sequence[Table]) -> None:
        self._connection = connection
        self.tables = tables
        """Tables before those that refer to them, and before their partitions."""

    async def rows(self, sql: str, *args: object) -> list[Any]:
        """Run a query at that moment."""
        return list(await self._connection.fetch(sql, *args))

    async def copy(self, table: Table, take: Take) -> None:
        """Pass all rows of a table to ``take``, in the text form of COPY."""
        if not table.divided:
            columns = list(table.columns)
            await self._connection.copy_from_table(table.name, columns=columns, output=take)


@asynccontextmanager
async def tables_out(url: str) -> AsyncIterator[TablesOut]:
    """Look at a database at one moment, as long as the block lasts.  Raises ``StoreError``."""
    async with (
        _connected(url) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        tables = await _tables(connection)
        names = ", ".join(f'"{table.name}"' for table in tables)
        if names:
            # Else housekeeping might drop a partition before its turn has come.
            await connection.execute(f"LOCK TABLE {names} IN ACCESS SHARE MODE")
        yield TablesOut(connection, tables)


class TablesIn:
    """An empty database that is being filled."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def prepare(self, tables: Sequence[Table]) -> None:
        """Make the partitions that are missing, and empty all tables.  Raises ``StoreError``."""
        there = {table.name: table for table in await _tables(self._connection)}
        for table in tables:
            names = [table.name, table.parent or "a", *table.columns]
            if not all(_NAME.fullmatch(name) for name in names):
                raise StoreError(f"the backup has a table with an impossible name, {table.name}")
            if table.name in there:
                continue
            if not table.parent or not _BOUND.fullmatch(table.bound) or table.divided:
                raise StoreError(f"the backup has a table that no migration makes, {table.name}")
            await self._connection.execute(
                f'CREATE TABLE "{table.name}" PARTITION OF "{table.parent}" {table.bound}'
            )
        names = [f'"{table.name}"' for table in there.values() if not table.parent]
        await self._connection.execute(f"TRUNCATE {', '.join(names)}")

    async def copy(self, table: Table, rows: AsyncIterable[bytes]) -> None:
        """Copy rows into a table, as ``TablesOut.copy`` passed them."""
        await self._connection.copy_to_table(table.name, columns=list(table.columns), source=rows)


@asynccontextmanager
async def tables_in(url: str) -> AsyncIterator[TablesIn]:
    """Fill a database in one transaction: all of it, or nothing after an error.

    Its schema is that of the tables.  Raises ``StoreError``.
    """
    async with _connected(url) as connection, connection.transaction():
        yield TablesIn(connection)


async def in_use(url: str) -> str | None:
    """Return the name of a table of a server in which there are rows; None if there is none.

    Raises ``StoreError``.
    """
    async with _connected(url) as connection:
        there = {table.name for table in await _tables(connection)}
        for name in USED:
            found = f"SELECT 1 FROM {name} LIMIT 1"  # noqa: S608 - one of ours
            if name in there and await connection.fetch(found):
                return name
    return None


async def _tables(connection: Connection) -> list[Table]:
    """Return the tables that migrations make, and their partitions, in order of dependence."""
    known = set()
    for migration in migrations.find(migrations.directory()):
        known |= set(_MADE.findall(migration.text))
    found, needs = {}, {}
    for name, divided, parent, bound, columns, refers in await connection.fetch(_TABLES):
        if name != _OWN and (name in known or parent in known):
            found[name] = Table(name, list(columns), divided, parent or "", bound or "")
            needs[name] = {*refers, *([parent] if parent else [])} - {name}
    needs = {name: wanted & found.keys() for name, wanted in needs.items()}
    ordered: dict[str, Table] = {}
    while len(ordered) < len(found):
        free = [name for name in found if name not in ordered and needs[name] <= ordered.keys()]
        if not free:
            raise StoreError("the tables of the store refer to each other in a circle")
        ordered |= {name: found[name] for name in free}
    return list(ordered.values())


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[Connection]:
    """Connect, for statements that may take hours."""
    where = f"PostgreSQL at {without_password(url)}"
    try:
        settings = {"application_name": "fabric backup", "statement_timeout": "0"}
        settings |= {"idle_in_transaction_session_timeout": "0"}
        connection = await asyncpg.connect(url, timeout=CONNECT_SECONDS, server_settings=settings)
    except (*_FAILURES, ValueError, OSError) as error:
        raise explain(error, where) from error
    try:
        yield connection
        await connection.close(timeout=CONNECT_SECONDS)
    except _FAILURES as error:
        raise explain(error, where) from error
    finally:
        connection.terminate()
