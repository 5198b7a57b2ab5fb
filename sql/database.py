"""The waist between the store's SQL, written once, and a database's driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol

Value = str | bytes | int | float | bool | None
Row = Sequence[Any]


class Many(NamedTuple):
    """One statement over many rows at once, the database's fastest way of taking them.

    ``sql`` reads the rows from ``(given)``, which each database fills in its own manner:
    ``WITH given (a, b) AS (given) INSERT INTO t (a, b) SELECT a, b FROM given WHERE true …``.
    """

    sql: str
    types: tuple[str, ...]
    """Of the columns given, in their order, by PostgreSQL's names."""


class Session(Protocol):
    """Where statements run.  Arguments are ``$1``, ``$2``, … in the text.

    Raises ``StoreError`` when the database could not, ``RecordError`` when a value can't be stored.
    """

    async def execute(self, sql: str, *args: Value) -> int:
        """Returns how many rows were touched."""

    async def fetch(self, sql: str, *args: Value) -> Sequence[Row]: ...

    async def many(self, statement: Many, rows: Sequence[Sequence[Value]]) -> Sequence[Row]:
        """Returns what the statement does (``RETURNING``).  It may be run once or for each part of
        the rows: it must not look at them as a whole."""

    async def script(self, text: str) -> None:
        """Several statements, each ended by ``;`` at the end of a line.  What stands behind
        ``--postgresql`` at the beginning of a line is for PostgreSQL alone."""

    async def alone(self, name: str) -> None:
        """Waits until no other transaction of any process holds ``name``, and holds it to the end
        of this one."""


class Database(Protocol):
    partitioned: bool
    """Whether tables that grow with time are cut by time here, so that old parts can be dropped."""

    async def fetch(self, sql: str, *args: Value) -> Sequence[Row]:
        """For reading alone: never waits for a transaction, never sees half of one."""

    async def writable(self) -> bool:
        """Whether it takes changes, as far as that can be told without making one."""

    def transaction(self, *, durable: bool = False) -> AbstractAsyncContextManager[Session]:
        """Commits at the end of the block, rolls back when it is left by an exception.

        ``durable`` ones survive a power cut as soon as they are committed; the others survive the
        end of any process, and a power cut at the latest a moment later.
        """

    async def close(self) -> None: ...


def insertion(table: str, columns: Mapping[str, str], *, returning: Sequence[str] = ()) -> Many:
    """Inserts rows (``columns`` maps names to types); those that are there already are left alone.

    ``returning`` names the columns to get back of each row that is new.
    """
    names = ", ".join(columns)
    back = f" RETURNING {', '.join(returning)}" if returning else ""
    return Many(
        f"WITH given ({names}) AS (given) INSERT INTO {table} ({names})"  # noqa: S608 - our names
        f" SELECT {names} FROM given WHERE true ON CONFLICT DO NOTHING{back}",
        tuple(columns.values()),
    )
