# ruff: noqa: S608 - only conditions of ours are put into a text
"""The table of ACME challenges: who orders a certificate for a name, and what the CA is told."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from fabric_server.storage.leases import lease_has_ended
from sql.database import Database


class ChallengeRow(Struct, frozen=True):
    """A challenge that servers answer now."""

    name: str
    kind: str
    token: str
    key_authorization: str


class ChallengeStore:
    """Every method raises ``StoreError`` when the database can't.

    Leases go by the database's clock.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, names: Sequence[str], owner: str, *, seconds: float) -> bool:
        """Take or renew the lease of all names; False if another server has one of them."""
        now = await self._database.now()
        async with self._database.transaction() as session:
            await session.alone("acme_challenges")
            for name in names:
                rows = await session.fetch(
                    "SELECT 1 FROM acme_challenges WHERE name = $1 AND owner <> $2"
                    f" AND NOT {lease_has_ended('$3')}",
                    *(name, owner, now),
                )
                if rows:
                    return False
            for name in names:
                await session.execute(
                    "INSERT INTO acme_challenges"
                    " (name, owner, lease_until, kind, token, key_authorization)"
                    " VALUES ($1, $2, $3, '', '', '') ON CONFLICT (name) DO UPDATE SET"
                    " owner = excluded.owner, lease_until = excluded.lease_until,"
                    " kind = '', token = '', key_authorization = ''",
                    *(name, owner, now + seconds),
                )
            return True

    async def publish(self, rows: Sequence[ChallengeRow], owner: str) -> None:
        """Have all servers answer these challenges, while the owner has the leases."""
        async with self._database.transaction() as session:
            for row in rows:
                await session.execute(
                    "UPDATE acme_challenges SET kind = $1, token = $2, key_authorization = $3"
                    " WHERE name = $4 AND owner = $5",
                    *(row.kind, row.token, row.key_authorization, row.name, owner),
                )

    async def answered(self) -> Sequence[ChallengeRow]:
        """Return the challenges that servers answer now."""
        now = await self._database.now()
        rows = await self._database.fetch(
            "SELECT name, kind, token, key_authorization FROM acme_challenges"
            f" WHERE token <> '' AND NOT {lease_has_ended('$1')} ORDER BY name",
            now,
        )
        return [ChallengeRow(*row) for row in rows]

    async def release(self, owner: str) -> None:
        """Give all leases back."""
        async with self._database.transaction() as session:
            await session.execute("DELETE FROM acme_challenges WHERE owner = $1", owner)
