"""SQLite: one file, written by one thread and read by two others.

The file is shared with other processes (``fabric-server keys …`` while the server runs): WAL lets
them read while one writes, and a second writer waits a few seconds for the first.
"""

from __future__ import annotations

import asyncio
import functools
import math
import re
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TypeVar

from runtime.errors import BackendError, NoStore, RecordError, StoreError
from sql.database import Many, Row, Session, Size, Value

OLDEST = (3, 35, 0)  # RETURNING
READERS = 2
INTERRUPT_AGAIN_SECONDS = 0.02

# Python's driver releases the interpreter lock around every step of a statement, and wakes threads
# that wait for it.  Many rows in one statement share that cost, and that of parsing.
# 100,000 ledger rows, 2026-11: one by one 3.0 us of CPU each, 100 at once 2.3; as JSON 8.5.
ROWS_AT_ONCE = (256, 32, 1)

# The driver looks values that are no plain number, text or bytearray up among its adapters, and
# searches their classes in vain where there is none: a NULL cost 0.6 us, a truth value 0.5.
sqlite3.register_adapter(type(None), lambda none: none)
_NUMBERS: dict[Value, Value] = {None: None, False: 0, True: 1}
"""What SQLite stores for truth values."""

T = TypeVar("T")


class SqliteDatabase:
    """A ``Database`` in the file at ``path``; None: in memory, until it is closed."""

    partitioned = False

    def __init__(
        self, path: Path | None, *, busy_seconds: float = 5.0, create: bool = True
    ) -> None:
        """Open the file; make it (0600) and its folder if missing.  Raises ``StoreError``.

        Without ``create``, a file that is missing is ``NoStore``.
        """
        if sqlite3.sqlite_version_info < OLDEST:
            raise StoreError(
                f"SQLite {sqlite3.sqlite_version} is too old; "
                f"{'.'.join(map(str, OLDEST))} or newer is needed: use a newer Python"
            )
        self._where = f"the store {path}" if path else "the store in memory"
        if path is not None and not create:
            _require(path)
        elif path is not None:
            _create(path)
        connect = functools.partial(_connect, path, busy_seconds, self._where)
        self._writer = _Worker(connect(), self._where)
        self._write_lock = asyncio.Lock()
        self._readers: asyncio.LifoQueue[_Worker] = asyncio.LifoQueue()
        self._workers = [self._writer]
        self._one_connection = path is None  # a second one would have a memory of its own
        for _ in range(0 if self._one_connection else READERS):
            worker = _Worker(connect(), self._where)
            worker.connection.execute("PRAGMA query_only = ON")
            self._workers.append(worker)
            self._readers.put_nowait(worker)

    def __repr__(self) -> str:
        return f"<SqliteDatabase {self._where}>"

    async def fetch(self, sql: str, *args: Value) -> Sequence[Row]:
        if self._one_connection:
            async with self._write_lock:
                return await self._writer.run(_fetch, _numbered(sql), args)
        worker = await self._readers.get()
        try:
            return await worker.run(_fetch, _numbered(sql), args, interruptible=True)
        finally:
            self._readers.put_nowait(worker)

    async def now(self) -> float:
        return time.time()  # its processes are all on this machine

    async def writable(self) -> bool:
        return True

    async def has_table(self, name: str) -> bool:
        found = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = $1"
        return bool(await self.fetch(found, name))

    async def size(self) -> Size:
        ((pages, free, bytes),) = await self.fetch(
            "SELECT page_count, freelist_count, page_size"
            " FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
        )
        return Size(pages * bytes, free * bytes)

    @asynccontextmanager
    async def transaction(self, *, durable: bool = False) -> AsyncIterator[Session]:
        async with self._write_lock:
            try:
                await self._writer.run(_begin, durable)
                yield _SqliteSession(self._writer)
                await self._writer.run(_commit)
            except BaseException:
                # Not awaited: this may be a cancellation.  The thread keeps the order, so the next
                # job finds the transaction gone.
                self._writer.post(_roll_back)
                raise

    async def close(self) -> None:
        """Wait for what runs, then close.  The last process to close the file checkpoints it."""
        async with self._write_lock:
            for worker in reversed(self._workers):
                await worker.close()


class _SqliteSession:
    def __init__(self, worker: _Worker) -> None:
        self._worker = worker

    async def execute(self, sql: str, *args: Value) -> int:
        return await self._worker.run(_execute, _numbered(sql), args)

    async def fetch(self, sql: str, *args: Value) -> Sequence[Row]:
        return await self._worker.run(_fetch, _numbered(sql), args)

    async def many(self, statement: Many, rows: Sequence[Sequence[Value]]) -> Sequence[Row]:
        return await self._worker.run(_many, statement, rows)

    async def script(self, text: str) -> None:
        await self._worker.run(_script, text)

    async def alone(self, name: str) -> None:
        """Do nothing: SQLite has one writer at a time anyway."""


class _Worker:
    """A connection and its thread, which runs jobs in the order they were given."""

    def __init__(self, connection: sqlite3.Connection, where: str) -> None:
        self.connection = connection
        self._where = where
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sqlite")
        self._closed = False

    async def run(self, job: Callable[..., T], *args: object, interruptible: bool = False) -> T:
        if self._closed:
            raise StoreError(f"{self._where} is closed")
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._thread, job, self.connection, *args)
        try:
            return await (asyncio.shield(future) if interruptible else future)
        except asyncio.CancelledError:
            if interruptible:  # the result is not needed: free the thread for its next job
                # SQLite forgets an interrupt that comes before the statement has begun.
                while not future.done():
                    self.connection.interrupt()
                    await asyncio.wait([future], timeout=INTERRUPT_AGAIN_SECONDS)
                future.exception()
            raise
        except (sqlite3.Error, OverflowError, UnicodeEncodeError) as error:
            raise explain(error, self._where) from error

    def post(self, job: Callable[[sqlite3.Connection], None]) -> None:
        if not self._closed:
            self._thread.submit(job, self.connection)

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._thread, self.connection.close)
            self._thread.shutdown(wait=False)


def explain(error: Exception, where: str) -> BackendError:
    """Translate the driver's error into one line that says what to do."""
    if isinstance(error, OverflowError | UnicodeEncodeError | sqlite3.InterfaceError):
        return RecordError(f"{where} can't hold a value: {error}")
    match getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            text = "is locked by another process; find it with `fuser`, or try again"
        case sqlite3.SQLITE_FULL:
            text = "can't grow: its disk is full; free some space"
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM | sqlite3.SQLITE_AUTH:
            text = "can't be written: run as the owner of the file and its folder"
        case sqlite3.SQLITE_CANTOPEN:
            text = "can't be opened: check the path and the permissions of its folder"
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            text = "is damaged or not a SQLite file: restore a backup, or move it away"
        case sqlite3.SQLITE_IOERR:
            text = f"can't be read or written ({error}): check the disk and the system's log"
        case sqlite3.SQLITE_CONSTRAINT | sqlite3.SQLITE_TOOBIG | sqlite3.SQLITE_MISMATCH:
            return RecordError(f"{where} rejects a row: {error}")
        case sqlite3.SQLITE_INTERRUPT:
            text = "was interrupted"
        case _:
            text = f"failed: {error}"
    return StoreError(f"{where} {text}")


def path_of(url: str) -> Path | None:
    """Return the file of a ``sqlite:`` URL, taken literally; None is memory.

    Raises ``ValueError`` when the URL holds something other than a path.
    """
    rest = url.removeprefix("sqlite://")
    if rest and not rest.startswith("/"):
        raise ValueError(f"write the path after three slashes: sqlite:///{rest}")
    return Path(rest[1:]).expanduser() if len(rest) > 1 else None


# ── opening ───────────────────────────────────────────────────────────────────────────────────


def _require(path: Path) -> None:
    try:
        if not path.stat().st_size:  # as SQLite leaves it when nothing was ever written
            raise NoStore(f"{path} is empty: it has no tables of a server")
    except (FileNotFoundError, NotADirectoryError):
        raise NoStore(f"there is no file {path}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StoreError(
            f"the store {path} can't be opened ({reason}): run as the user of the server, or root"
        ) from error


def _create(path: Path) -> None:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError):
            # SQLite gives its -wal and -shm files the mode of this one.
            path.touch(mode=0o600, exist_ok=False)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StoreError(
            f"can't create the store {path} ({reason}): "
            "choose another path, or make its folder writable"
        ) from error


def _connect(path: Path | None, busy_seconds: float, where: str) -> sqlite3.Connection:
    connection: sqlite3.Connection | None = None
    try:
        connection = sqlite3.connect(
            path or ":memory:", timeout=busy_seconds, isolation_level=None, check_same_thread=False
        )
        if path is not None:
            _use_wal(connection, busy_seconds, where)
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA journal_size_limit = 67108864")
        _add_floor(connection)
    except (sqlite3.Error, StoreError) as error:
        if connection is not None:
            connection.close()
        raise error if isinstance(error, StoreError) else explain(error, where) from error
    return connection


def _use_wal(connection: sqlite3.Connection, busy_seconds: float, where: str) -> None:
    give_up = time.monotonic() + busy_seconds
    while True:
        try:
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            break
        except sqlite3.OperationalError as error:
            # Two processes that open a new file at once: SQLite does not wait by itself here.
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() >= give_up:
                raise
            time.sleep(0.02)
    if mode != "wal":
        raise StoreError(f"{where} can't be shared between processes here: use a local disk")


def _add_floor(connection: sqlite3.Connection) -> None:
    try:
        connection.execute("SELECT FLOOR(1.5)")
    except sqlite3.OperationalError:  # a build without the mathematical functions
        connection.create_function("FLOOR", 1, math.floor, deterministic=True)


# ── in a worker's thread ───────────────────────────────────────────────────────────────────────


def _begin(connection: sqlite3.Connection, durable: bool) -> None:
    connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
    connection.execute("BEGIN IMMEDIATE")


def _commit(connection: sqlite3.Connection) -> None:
    connection.execute("COMMIT")


def _roll_back(connection: sqlite3.Connection) -> None:
    with suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _execute(connection: sqlite3.Connection, sql: str, args: Sequence[Value]) -> int:
    return connection.execute(sql, args).rowcount


def _fetch(connection: sqlite3.Connection, sql: str, args: Sequence[Value]) -> Sequence[Row]:
    return connection.execute(sql, args).fetchall()


def _many(
    connection: sqlite3.Connection, statement: Many, rows: Sequence[Sequence[Value]]
) -> Sequence[Row]:
    returned: list[Row] = []
    width, at = len(statement.types), 0
    booleans = [column for column, type_ in enumerate(statement.types) if type_ == "BOOLEAN"]
    for size in ROWS_AT_ONCE:
        sql = _given(statement, size)
        while len(rows) - at >= size:
            values = list(chain.from_iterable(rows[at : at + size]))
            for column in booleans:
                values[column::width] = map(_NUMBERS.__getitem__, values[column::width])
            returned += connection.execute(sql, values).fetchall()
            at += size
    return returned


def _script(connection: sqlite3.Connection, text: str) -> None:
    # Connection.executescript would commit the transaction this runs in.
    statement = ""
    for line in text.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            connection.execute(statement)
            statement = ""
    connection.execute(statement)


@functools.lru_cache(maxsize=64)
def _given(statement: Many, rows: int) -> str:
    row = f"({', '.join('?' * len(statement.types))})"
    return statement.sql.replace("(given)", f"(VALUES {', '.join([row] * rows)})")


@functools.lru_cache(maxsize=256)
def _numbered(sql: str) -> str:
    """Return the statement with ``?1`` for ``$1``, which SQLite takes for a name."""
    return re.sub(r"\$(\d+)", r"?\1", sql)
