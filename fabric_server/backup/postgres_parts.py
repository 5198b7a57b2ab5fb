"""The tables of PostgreSQL as parts of a backup.

store/tables.json             the tables, in the order in which they can be filled
store/<table>/00000001.copy   their rows: what COPY writes, cut anywhere
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Protocol

import msgspec

from fabric_server.backup.age import DAMAGED
from fabric_server.backup.archive import STORE, ArchiveWriter, Part
from fabric_server.backup.problem import BackupProblem
from sql.database import Table

TABLES = f"{STORE}/tables.json"
ROWS_BYTES = 8 * 2**20
"""Bytes of a table in one part, which is made in memory."""


class TablesOut(Protocol):
    """The tables of a database at one moment (``sql.postgres_copy.TablesOut``)."""

    @property
    def tables(self) -> Sequence[Table]: ...

    async def copy(self, table: Table, take: Callable[[bytes], Awaitable[None]]) -> None: ...


class TablesIn(Protocol):
    """An empty database that is being filled (``sql.postgres_copy.TablesIn``)."""

    async def prepare(self, tables: Sequence[Table]) -> None: ...

    async def copy(self, table: Table, rows: AsyncIterable[bytes]) -> None: ...


async def write_tables(tables: TablesOut, archive: ArchiveWriter) -> None:
    """Add all tables.  Raises ``StoreError``."""
    archive.add_bytes(TABLES, msgspec.json.encode(list(tables.tables)))
    for table in tables.tables:
        rows = _Rows(archive, table.name)
        await tables.copy(table, rows.take)
        rows.flush()


class _Rows:
    """Cuts the rows of a table into parts."""

    def __init__(self, archive: ArchiveWriter, table: str) -> None:
        self._archive = archive
        self._table = table
        self._parts = 0
        self._waiting = bytearray()

    async def take(self, data: bytes) -> None:
        self._waiting += data
        if len(self._waiting) >= ROWS_BYTES:
            self.flush()

    def flush(self) -> None:
        if self._waiting:
            self._parts += 1
            name = f"{STORE}/{self._table}/{self._parts:08}.copy"
            self._archive.add_bytes(name, bytes(self._waiting))
            self._waiting.clear()


async def read_tables(first: Part, parts: Iterator[Part], tables: TablesIn) -> None:
    """Fill the tables from the rest of a backup.  Raises ``BackupProblem``, ``StoreError``.

    Returns at the end of the backup; what is in the database is certain only then.
    """
    if first.name != TABLES:
        raise BackupProblem(DAMAGED)
    try:
        known = msgspec.json.decode(first.document(), type=list[Table])
    except (ValueError, RecursionError):
        raise BackupProblem(DAMAGED) from None
    await tables.prepare(known)
    reading = _Reading(parts)
    for table in known:
        if reading.table == table.name:
            await tables.copy(table, reading.rows())
    if reading.part is not None:  # a table that is not in the list, or in another order
        raise BackupProblem(DAMAGED)


class _Reading:
    """The parts of the tables, one table after the other."""

    def __init__(self, parts: Iterator[Part]) -> None:
        self._parts = parts
        self.part: Part | None = next(parts, None)

    @property
    def table(self) -> str:
        """The table of the next part; empty after the last."""
        return self.part.name.split("/")[1] if self.part is not None else ""

    async def rows(self) -> AsyncIterator[bytes]:
        table = self.table
        while self.part is not None and self.table == table:
            for piece in self.part.pieces():
                yield piece
            self.part = next(self._parts, None)
