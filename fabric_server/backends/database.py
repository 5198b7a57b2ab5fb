"""The waist between the store's SQL, written once, and a database's driver."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

Value = str | bytes | int | float | bool | None
Row = Sequence[Any]


class Session(Protocol):
    """Where statements run.  Arguments are ``$1``, ``$2``, … in the text.

    Raises ``StoreError`` when the database could not, ``RecordError`` when a value can't be stored.
    """

    async def execute(self, sql: str, *args: Value) -> int:
        """Returns how many rows were touched."""

    async def executemany(self, sql: str, rows: Iterable[Sequence[Value]]) -> None:
        """The same statement for each row."""

    async def fetch(self, sql: str, *args: Value) -> Sequence[Row]: ...

    async def insert(
        self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Value]]
    ) -> int:
        """Many rows the database's fastest way; rows whose primary key exists already are left
        alone.  Returns how many are new."""

    async def script(self, text: str) -> None:
        """Several statements, each ended by ``;`` at the end of a line."""


class Database(Protocol):
    async def fetch(self, sql: str, *args: Value) -> Sequence[Row]:
        """For reading alone: never waits for a transaction, never sees half of one."""

    def transaction(self, *, durable: bool = False) -> AbstractAsyncContextManager[Session]:
        """Commits at the end of the block, rolls back when it is left by an exception.

        ``durable`` ones survive a power cut as soon as they are committed; the others survive the
        end of the process, and a power cut a moment later.
        """

    async def close(self) -> None: ...
