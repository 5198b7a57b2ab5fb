"""The store: everything that outlives the process, in one database."""

from __future__ import annotations

import time
from collections.abc import Callable

from fabric_server.storage import keys, nodes
from fabric_server.storage.keys import KeyStore
from fabric_server.storage.nodes import NodeStore
from fabric_server.storage.revision import current_revision
from fabric_server.storage.rows import Changes
from ledger.reports import LedgerReports
from ledger.tables import LedgerTables
from sql.connect import migrate
from sql.database import Database


class SqlStore(KeyStore, NodeStore, LedgerTables, LedgerReports):
    """The tables that most of the server uses, each group's methods from the class that has them.

    Jobs, batches, files and webhooks have stores of their own, over the same ``database``.  Every
    method raises ``StoreError`` when the database can't.
    """

    def __init__(
        self, database: Database, revision: int, clock: Callable[[], float] = time.time
    ) -> None:
        LedgerTables.__init__(self, database, clock)
        LedgerReports.__init__(self, database)
        self.revision_at_open = revision
        """All that is read through this object is as new as this revision, or newer."""

    @classmethod
    async def open(cls, database: Database, clock: Callable[[], float] = time.time) -> SqlStore:
        """Bring the schema up to date, then read the revision; close the database on failure."""
        try:
            await migrate(database, clock())
            return cls(database, await current_revision(database), clock)
        except BaseException:
            await database.close()
            raise

    @property
    def database(self) -> Database:
        """The database, for stores of other tables."""
        return self._database

    async def close(self) -> None:
        await self._database.close()

    async def writable(self) -> bool:
        """Return whether the database accepts changes; a replica does not."""
        return await self._database.writable()

    async def revision(self) -> int:
        return await current_revision(self._database)

    async def changes(self, since: int) -> Changes:
        """Return the keys and nodes changed after revision ``since``: one small query if none.

        When an account is enabled or disabled, all its keys have changed.
        """
        # The number first: a change between the queries is then reported twice rather than never.
        revision = await current_revision(self._database)
        everything = revision < since
        if revision == since:
            return Changes(revision, everything)
        after = 0 if everything else since
        return Changes(
            revision,
            everything,
            await keys.changed_after(self._database, after),
            await nodes.changed_after(self._database, after),
        )
