"""PostgreSQL, with asyncpg: a pool of connections, one for each transaction or query at a time."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias

import asyncpg

from runtime.errors import BackendError, RecordError, StoreError, Unreachable
from runtime.shown import without_password
from sql.database import Many, Row, Session, Size, Value

OLDEST = 13
CONNECT_SECONDS = 5.0
STATEMENT_SECONDS = 30.0
"""Longest wait for the result of one statement; reports have a limit of their own."""
CLOSE_SECONDS = 5.0

_POSTGRES_ONLY = re.compile(r"^--postgresql ", re.MULTILINE)
_AWAY = (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError, TimeoutError)

# When PostgreSQL is away, the errors raised here are reported once by their callers; asyncpg's pool
# logs a traceback for each attempt to fill itself again.
_library_log = logging.getLogger("asyncpg")
if _library_log.level == logging.NOTSET:
    _library_log.setLevel(logging.CRITICAL)

Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"


class PostgresDatabase:
    """A ``Database`` at a ``postgresql://`` URL, where every transaction is durable."""

    partitioned = True

    def __init__(
        self, pool: asyncpg.Pool[asyncpg.Record], where: str, connect_seconds: float
    ) -> None:
        self._pool = pool
        self._where = where
        self._connect_seconds = connect_seconds

    @classmethod
    async def open(
        cls,
        url: str,
        *,
        connections: int = 10,
        connect_seconds: float = CONNECT_SECONDS,
        statement_seconds: float = STATEMENT_SECONDS,
        oldest: int = OLDEST,
    ) -> PostgresDatabase:
        """Connect.

        Raises ``Unreachable`` when nothing answers there, ``StoreError`` when it can't be used.
        """
        where = f"PostgreSQL at {without_password(url)}"
        try:
            pool = await asyncpg.create_pool(
                url,
                min_size=1,
                max_size=connections,
                timeout=connect_seconds,
                command_timeout=statement_seconds,
                server_settings={"application_name": "fabric"},
            )
        except (asyncpg.PostgresError, ValueError, *_AWAY) as error:
            raise _no_entry(error, where) from error
        database = cls(pool, where, connect_seconds)
        try:
            (version,) = (await database.fetch("SHOW server_version_num"))[0]
            if int(version) < oldest * 10_000:
                raise StoreError(
                    f"{where} is version {int(version) // 10_000}; {oldest} or newer is needed"
                )
        except BaseException:
            await database.close()
            raise
        return database

    def __repr__(self) -> str:
        return f"<PostgresDatabase {self._where}>"

    async def fetch(self, sql: str, *args: Value) -> Sequence[Row]:
        async with self._connection() as connection:
            rows: Sequence[Row] = await connection.fetch(sql, *args)
            return rows

    async def now(self) -> float:
        rows = await self.fetch("SELECT extract(epoch FROM clock_timestamp())::float8")
        return float(rows[0][0])

    async def writable(self) -> bool:
        ((read_only,),) = await self.fetch("SHOW transaction_read_only")
        return bool(read_only == "off")

    async def has_table(self, name: str) -> bool:
        ((found,),) = await self.fetch("SELECT to_regclass($1) IS NOT NULL", name)
        return bool(found)

    async def size(self) -> Size:
        ((bytes,),) = await self.fetch("SELECT pg_database_size(current_database())")
        return Size(int(bytes), None)

    @asynccontextmanager
    async def transaction(self, *, durable: bool = False) -> AsyncIterator[Session]:
        async with self._connection() as connection, connection.transaction():
            yield _PostgresSession(connection)

    async def close(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        """Borrow a connection from the pool, and translate the errors on it."""
        try:
            connection = await self._pool.acquire(timeout=self._connect_seconds)
        except (asyncpg.PostgresError, *_AWAY) as error:
            raise explain(error, self._where) from error
        try:
            yield connection
        except (asyncpg.PostgresError, ValueError, OverflowError, *_AWAY) as error:
            if isinstance(error, _AWAY) and not isinstance(error, ValueError):
                _terminate(connection)  # its state is unknown, and a server that hangs stays so
            raise explain(error, self._where) from error
        except asyncio.CancelledError:
            # asyncpg would wait for the server to confirm, which a server that hangs never does.
            _terminate(connection)
            raise
        finally:
            await self._release(connection)

    async def _release(self, connection: Connection) -> None:
        """Give a connection back to the pool, which resets it.

        A connection that breaks meanwhile is dropped: what was read or committed on it stands.
        """
        try:
            await self._pool.release(connection)
        except (asyncpg.PostgresError, *_AWAY):
            _terminate(connection)


class _PostgresSession:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def execute(self, sql: str, *args: Value) -> int:
        return _count(await self._connection.execute(sql, *args))

    async def fetch(self, sql: str, *args: Value) -> Sequence[Row]:
        rows: Sequence[Row] = await self._connection.fetch(sql, *args)
        return rows

    async def many(self, statement: Many, rows: Sequence[Sequence[Value]]) -> Sequence[Row]:
        if not rows:
            return []
        arrays = ", ".join(f"${n}::{kind}[]" for n, kind in enumerate(statement.types, 1))
        given = f"(SELECT * FROM unnest({arrays}))"  # noqa: S608 - our own type names
        sql = statement.sql.replace("(given)", given)
        returned: Sequence[Row] = await self._connection.fetch(
            sql, *map(list, zip(*rows, strict=True))
        )
        return returned

    async def script(self, text: str) -> None:
        await self._connection.execute(_POSTGRES_ONLY.sub("", text))

    async def alone(self, name: str) -> None:
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
        await self._connection.execute("SELECT pg_advisory_xact_lock($1)", number)


def _terminate(connection: Connection) -> None:
    with suppress(asyncpg.InterfaceError):  # the pool has noticed already that it is dead
        connection.terminate()


def _count(tag: str) -> int:
    """``INSERT 0 5`` and ``UPDATE 5`` mean five."""
    last = tag.rpartition(" ")[2]
    return int(last) if last.isdigit() else 0


def _no_entry(error: Exception, where: str) -> StoreError:
    """Return the error of a first connection that failed."""
    match error:
        case asyncpg.InvalidAuthorizationSpecificationError():
            return StoreError(f"{where} rejects this user or password ({_text(error)})")
        case asyncpg.InvalidCatalogNameError():
            return StoreError(f"{where} has no such database ({_text(error)}): create it first")
        case asyncpg.CannotConnectNowError() | asyncpg.TooManyConnectionsError():
            return Unreachable(f"{where} accepts no connections now ({_text(error)})")
        case asyncpg.PostgresError():
            return StoreError(f"{where} can't be used: {_text(error)}")
        case asyncpg.InterfaceError() | ValueError():
            return StoreError(f"{where}: the URL is invalid: {_text(error)}")
        case TimeoutError():
            return Unreachable(f"{where} does not answer: is it running?")
    return Unreachable(f"{where} can't be reached ({_text(error)}): is it running?")


def explain(error: Exception, where: str) -> BackendError:
    """Translate the driver's error into one line that says what to do."""
    match error:
        case asyncpg.ReadOnlySQLTransactionError():
            text = "is read-only: make it writable, or name the primary"
        case asyncpg.DiskFullError():
            text = "can't grow: its disk is full; free some space"
        case asyncpg.TooManyConnectionsError():
            text = "has no connection left: raise max_connections"
        case asyncpg.InsufficientPrivilegeError():
            text = f"denies this user permission ({_text(error)})"
        case asyncpg.PostgresConnectionError() | asyncpg.OperatorInterventionError():
            text = f"is away ({_text(error)})"
        case TimeoutError():
            text = "does not answer"
        case asyncpg.PostgresError() if error.sqlstate and error.sqlstate[:2] in ("22", "23", "54"):
            return RecordError(f"{where} rejects a row: {_text(error)}")
        case asyncpg.PostgresError():
            text = f"failed: {_text(error)}"
        case ValueError() | OverflowError():  # asyncpg's own DataError is one
            return RecordError(f"{where} can't hold a value: {_text(error)}")
        case _:
            text = f"is away ({_text(error)})"
    return StoreError(f"{where} {text}")


def _text(error: Any) -> str:
    """Return the driver's text on one line."""
    return " ".join(str(error).split()) or type(error).__name__
