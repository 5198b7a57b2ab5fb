"""The revision: the number of the latest change to accounts, keys, nodes or invitations.

Each such change increments it in its own transaction, so that other processes find out with one
small query whether they have to look (sql/README.md).
"""

from __future__ import annotations

from sql.database import Database, Session


async def current_revision(database: Database) -> int:
    rows = await database.fetch("SELECT number FROM revision")
    return int(rows[0][0])


async def next_revision(session: Session) -> int:
    """Return the revision of the change that this transaction makes.

    All other transactions that change something wait for the end of this one: call it before
    reading what the change depends on.
    """
    rows = await session.fetch("UPDATE revision SET number = number + 1 RETURNING number")
    return int(rows[0][0])
