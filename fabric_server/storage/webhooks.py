# ruff: noqa: S608 - only numbers of ours are put into a text
"""The table of webhooks that are still to be delivered."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import astuple

from sql.database import Database, Session


class WebhookRow(Struct, frozen=True):
    """The columns of the table, in order."""

    id: str
    """``msg_…``, the same for each attempt."""
    account: str
    url: str
    secret: str
    """The signing secret in clear; it must not be logged or shown."""
    body: bytes
    tries: int
    """Attempts begun so far."""
    next_at: float
    """Unix seconds."""

    def __repr__(self) -> str:
        return f"<WebhookRow {self.id} tries={self.tries}>"


class WebhookStore:
    """Every method raises ``StoreError`` when the database can't."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def due(self, now: float, *, limit: int, busy: Sequence[str] = ()) -> list[WebhookRow]:
        """Return the webhooks to attempt now, but none of the ``busy`` accounts."""
        others = "".join(f" AND account <> ${n}" for n in range(3, 3 + len(busy)))
        rows = await self._database.fetch(
            "SELECT id, account, url, secret, body, tries, next_at FROM webhooks"
            f" WHERE next_at <= $1{others} ORDER BY next_at LIMIT $2",
            now,
            limit,
            *busy,
        )
        return [WebhookRow(*row) for row in rows]

    async def count(self, account: str | None = None) -> int:
        """Return the number of webhooks, of all accounts or of one."""
        where, values = ("", ()) if account is None else (" WHERE account = $1", (account,))
        rows = await self._database.fetch(f"SELECT count(*) FROM webhooks{where}", *values)
        return int(rows[0][0])

    async def begin(self, webhook: WebhookRow, next_at: float) -> bool:
        """Begin an attempt, the next one being at ``next_at``; False: another server has it."""
        async with self._database.transaction() as session:
            return bool(
                await session.execute(
                    "UPDATE webhooks SET tries = tries + 1, next_at = $1"
                    " WHERE id = $2 AND tries = $3",
                    next_at,
                    webhook.id,
                    webhook.tries,
                )
            )

    async def delete(self, id: str) -> None:
        """Remove a webhook that was delivered, or given up."""
        async with self._database.transaction() as session:
            await session.execute("DELETE FROM webhooks WHERE id = $1", id)


async def add_webhook(session: Session, webhook: WebhookRow) -> None:
    """Add a webhook, unless it exists."""
    await session.execute(
        "INSERT INTO webhooks (id, account, url, secret, body, tries, next_at)"
        " VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (id) DO NOTHING",
        *astuple(webhook),
    )
