# ruff: noqa: S608 - only column names of ours are put into a text
"""The table of stored responses: by account, for all servers that share the store."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import astuple

from sql.database import Database, Session

OVERHEAD_BYTES = 4096
"""Bytes that each response counts beyond its size, so that the number of rows is limited, too."""
_AT_ONCE = 100


class ResponseRow(Struct, frozen=True):
    """The columns of the table, in order."""

    account: str
    id: str
    size: int
    created_at: float
    expires_at: float
    input: bytes
    """JSON: the list of the items that the engine got."""
    response: bytes
    """JSON: the response object."""


_ROW = ", ".join(ResponseRow.__struct_fields__)


class ResponseStore:
    """Every method raises ``StoreError`` when the database can't."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, row: ResponseRow, *, max_bytes: int) -> bool:
        """Store a response; the account's oldest are deleted where all have over ``max_bytes``.

        Return False when it is larger than that by itself, or when its id is there already.
        """
        needed = row.size + OVERHEAD_BYTES
        if needed > max_bytes:
            return False
        async with self._database.transaction(durable=True) as session:
            await session.alone(f"responses of {row.account}")
            added = await session.execute(
                f"INSERT INTO stored_responses ({_ROW}) VALUES ($1, $2, $3, $4, $5, $6, $7)"
                " ON CONFLICT (account, id) DO NOTHING",
                *astuple(row),
            )
            if added:
                await _make_room(session, row, max_bytes)
            return bool(added)

    async def size(self, account: str, id: str, now: float) -> int | None:
        """Return the bytes of what ``find`` would return; None when there is nothing."""
        rows = await self._database.fetch(
            "SELECT size FROM stored_responses WHERE account = $1 AND id = $2 AND expires_at > $3",
            account,
            id,
            now,
        )
        return int(rows[0][0]) if rows else None

    async def find(self, account: str, id: str, now: float) -> ResponseRow | None:
        """Return the account's response of this id, unless it has expired."""
        rows = await self._database.fetch(
            f"SELECT {_ROW} FROM stored_responses"
            " WHERE account = $1 AND id = $2 AND expires_at > $3",
            account,
            id,
            now,
        )
        if not rows:
            return None
        *others, given, response = rows[0]
        values = [*others, bytes(given), bytes(response)]
        return ResponseRow(*values)

    async def delete(self, account: str, id: str, now: float) -> bool:
        """Delete the account's response of this id; False when there is none to be found."""
        async with self._database.transaction(durable=True) as session:
            deleted = await session.execute(
                "DELETE FROM stored_responses WHERE account = $1 AND id = $2 AND expires_at > $3",
                account,
                id,
                now,
            )
            return bool(deleted)


async def _make_room(session: Session, new: ResponseRow, max_bytes: int) -> None:
    """Delete the account's oldest responses, but not the new one, until the others fit."""
    rows = await session.fetch(
        "SELECT CAST(sum(size + $2) AS BIGINT) FROM stored_responses WHERE account = $1",
        new.account,
        OVERHEAD_BYTES,
    )
    surplus = int(rows[0][0]) - max_bytes
    while surplus > 0:
        oldest = await session.fetch(
            "SELECT id, size FROM stored_responses WHERE account = $1 AND id <> $2"
            " ORDER BY created_at, id LIMIT $3",
            new.account,
            new.id,
            _AT_ONCE,
        )
        if not oldest:  # the sum is not that of the rows: nothing is left to delete
            break
        for id, size in oldest:
            if surplus <= 0:
                break
            await session.execute(
                "DELETE FROM stored_responses WHERE account = $1 AND id = $2", new.account, id
            )
            surplus -= size + OVERHEAD_BYTES
