# ruff: noqa: S608 - only column names of ours are put into a text
"""The tables of clients' files: in chunks, for all servers that share the store."""

from __future__ import annotations

from collections.abc import AsyncIterator

from msgspec import Struct
from msgspec.structs import astuple

from sql.database import Database, Row, Session

CHUNK = 512 * 1024
"""Bytes of a file in one row."""


OVERHEAD_BYTES = 4096
"""Bytes that each file counts beyond its size, so that empty files are limited, too."""


class FileRow(Struct, frozen=True):
    """The columns of the table, in order."""

    id: str
    account: str
    name: str
    purpose: str
    size: int
    created_at: float
    expires_at: float
    complete: bool = False


_FILE = ", ".join(FileRow.__struct_fields__)


class FileStore:
    """Every method raises ``StoreError`` when the database can't."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def begin(self, file: FileRow) -> None:
        """Begin a file, which is not visible before ``complete``.

        An incomplete one of this id is begun anew.
        """
        async with self._database.transaction() as session:
            await session.execute(
                "DELETE FROM file_chunks WHERE file_id IN"
                " (SELECT id FROM files WHERE id = $1 AND NOT complete)",
                file.id,
            )
            await session.execute(
                f"INSERT INTO files ({_FILE}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)"
                " ON CONFLICT (id) DO NOTHING",
                *astuple(file),
            )

    async def add_chunk(self, id: str, number: int, data: bytes) -> None:
        async with self._database.transaction() as session:
            await session.execute(
                "INSERT INTO file_chunks (file_id, number, data) VALUES ($1, $2, $3)",
                id,
                number,
                data,
            )

    async def complete(self, file: FileRow, *, max_bytes: int | None = None) -> bool:
        """Make the file visible; False if the account would have more than ``max_bytes``."""
        async with self._database.transaction(durable=True) as session:
            await session.alone(f"files of {file.account}")
            if max_bytes is not None:
                used = await _used_bytes(session, file.account)
                if used + file.size + OVERHEAD_BYTES > max_bytes:
                    return False
            await session.execute(
                "UPDATE files SET complete = TRUE, size = $1, name = $2, purpose = $3"
                " WHERE id = $4",
                file.size,
                file.name,
                file.purpose,
                file.id,
            )
            return True

    async def used_bytes(self, account: str) -> int:
        """Return the bytes of all its files, each with ``OVERHEAD_BYTES`` more."""
        return await _used_bytes(self._database, account)

    async def file(self, account: str, id: str) -> FileRow | None:
        rows = await self._database.fetch(
            f"SELECT {_FILE} FROM files WHERE account = $1 AND id = $2 AND complete", account, id
        )
        return _file(rows[0]) if rows else None

    async def files(
        self, account: str, *, after: FileRow | None, purpose: str | None, limit: int, newest: bool
    ) -> list[FileRow]:
        compare, order = ("<", "DESC") if newest else (">", "ASC")
        where = "account = $1 AND complete"
        values: list[str | float] = [account]
        if purpose is not None:
            values.append(purpose)
            where += f" AND purpose = ${len(values)}"
        if after is not None:
            values += [after.created_at, after.id]
            where += f" AND (created_at, id) {compare} (${len(values) - 1}, ${len(values)})"
        values.append(limit)
        rows = await self._database.fetch(
            f"SELECT {_FILE} FROM files WHERE {where}"
            f" ORDER BY created_at {order}, id {order} LIMIT ${len(values)}",
            *values,
        )
        return list(map(_file, rows))

    async def chunks(self, id: str) -> AsyncIterator[bytes]:
        number = 0
        while True:
            rows = await self._database.fetch(
                "SELECT data FROM file_chunks WHERE file_id = $1 AND number = $2", id, number
            )
            if not rows:
                return
            yield bytes(rows[0][0])
            number += 1

    async def delete(self, id: str) -> None:
        async with self._database.transaction(durable=True) as session:
            await session.execute("DELETE FROM file_chunks WHERE file_id = $1", id)
            await session.execute("DELETE FROM files WHERE id = $1", id)

    async def expired(self, now: float, begun_before: float, *, limit: int = 10) -> list[str]:
        """Return ids of files that have expired, or that were begun and never completed."""
        rows = await self._database.fetch(
            "SELECT id FROM files WHERE expires_at <= $1"
            " UNION SELECT id FROM files WHERE NOT complete AND created_at < $2 LIMIT $3",
            now,
            begun_before,
            limit,
        )
        return [row[0] for row in rows]


async def _used_bytes(where: Database | Session, account: str) -> int:
    rows = await where.fetch(
        "SELECT CAST(COALESCE(sum(size + $2), 0) AS BIGINT) FROM files"
        " WHERE account = $1 AND complete",
        account,
        OVERHEAD_BYTES,
    )
    return int(rows[0][0])


def _file(row: Row) -> FileRow:
    *others, complete = row
    values = [*others, bool(complete)]  # SQLite has no truth values of its own
    return FileRow(*values)
