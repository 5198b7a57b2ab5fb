# ruff: noqa: S608 - only conditions of ours are put into a text
"""Deletion of what can't be used any more, some at a time: keys, invitations, nodes, answers."""

from __future__ import annotations

from collections.abc import Sequence

from sql.database import Database

_INVITATIONS = "FROM invitations WHERE expires_at < $1"
_REVOKED = "FROM keys WHERE revoked_at < $1"
_EXPIRED = "FROM keys WHERE expires_at < $1"
_ANSWERS = "FROM stored_answers WHERE expires_at < $1"
_LAST_SEEN = "COALESCE(last_seen_at, created_at)"
_NODES = f"FROM nodes WHERE NOT online AND revoked_at IS NULL AND {_LAST_SEEN} < $1"
_REVOKED_NODES = f"FROM nodes WHERE NOT online AND revoked_at < $1 AND {_LAST_SEEN} < $1"


class EndedRows:
    """Every method returns a number of rows, and raises ``StoreError`` when the database can't.

    What is unknown is refused as what was revoked is: deleting lets nobody in.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def delete_invitations(self, before: float, limit: int) -> int:
        """Delete invitations, used or not, that expired before that time."""
        return await self._delete("invitations", _INVITATIONS, before, limit)

    async def count_invitations(self, before: float) -> int:
        return await self._count(_INVITATIONS, before)

    async def delete_keys(self, before: float, limit: int) -> int:
        """Delete keys that were revoked or expired before that time."""
        deleted = await self._delete("keys", _REVOKED, before, limit)
        return deleted or await self._delete("keys", _EXPIRED, before, limit)

    async def count_keys(self, before: float) -> int:
        rows = await self._database.fetch(
            "SELECT COUNT(*) FROM keys WHERE revoked_at < $1 OR expires_at < $1", before
        )
        return int(rows[0][0])

    async def delete_answers(self, before: float, limit: int) -> int:
        """Delete stored responses and chat completions that expired before that time."""
        async with self._database.transaction() as session:
            return await session.execute(
                "DELETE FROM stored_answers WHERE (account, id) IN"
                f" (SELECT account, id {_ANSWERS} LIMIT $2)",
                before,
                limit,
            )

    async def count_answers(self, before: float) -> int:
        return await self._count(_ANSWERS, before)

    async def delete_nodes(self, before: float, limit: int) -> int:
        """Delete nodes that were last seen before that time, but no revoked ones."""
        return await self._delete_nodes(_NODES, before, limit)

    async def count_nodes(self, before: float) -> int:
        return await self._count(_NODES, before)

    async def delete_revoked_nodes(self, before: float, limit: int) -> int:
        """Delete nodes that were revoked before that time."""
        return await self._delete_nodes(_REVOKED_NODES, before, limit)

    async def count_revoked_nodes(self, before: float) -> int:
        return await self._count(_REVOKED_NODES, before)

    async def _count(self, which: str, before: float) -> int:
        rows = await self._database.fetch(f"SELECT COUNT(*) {which}", before)
        return int(rows[0][0])

    async def _delete(self, table: str, which: str, before: float, limit: int) -> int:
        async with self._database.transaction() as session:
            return await session.execute(
                f"DELETE FROM {table} WHERE id IN (SELECT id {which} LIMIT $2)", before, limit
            )

    async def _delete_nodes(self, which: str, before: float, limit: int) -> int:
        rows = await self._database.fetch(f"SELECT id {which} LIMIT $2", before, limit)
        ids: Sequence[str] = [row[0] for row in rows]
        deleted = 0
        for id in ids:
            async with self._database.transaction() as session:
                # The first statement locks the row; a node that is back meanwhile stays.
                still = f"UPDATE nodes SET problem = '' WHERE id = $2 AND id IN (SELECT id {which})"
                if not await session.execute(still, before, id):
                    continue
                await session.execute("DELETE FROM served_models WHERE node_id = $1", id)
                await session.execute("DELETE FROM invitations WHERE node_id = $1", id)
                deleted += await session.execute("DELETE FROM nodes WHERE id = $1", id)
        return deleted
