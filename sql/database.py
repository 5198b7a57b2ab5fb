"""The interface between the store's SQL, written once, and a database's driver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NamedTuple, Protocol

Value = str | bytes | int | float | bool | None
Row = Sequence[Any]


class Many(NamedTuple):
    """One statement over many rows at once, the fastest that the database has.

    ``sql`` reads the rows from ``(given)``, which each adapter fills in its own way:
    ``WITH given (a, b) AS (given) INSERT INTO t (a, b) SELECT a, b FROM given WHERE true …``.
    """

    sql: str
    types: tuple[str, ...]
    """The types of the columns, in their order, by PostgreSQL's names."""


class Size(NamedTuple):
    """The bytes of a database on its disk."""

    bytes: int
    free: int | None
    """Of these, what is reused before it grows; None: not known."""


class Table(NamedTuple):
    """One table of PostgreSQL that is copied, without its rows."""

    name: str
    columns: Sequence[str]
    divided: bool
    """Its rows are in partitions."""
    parent: str
    """The table of which it is a partition; empty if it is none."""
    bound: str
    """Which rows of the parent it has, as PostgreSQL writes it."""


class Session(Protocol):
    """A transaction in which statements run.  Arguments are ``$1``, ``$2``, … in the text.

    Raises ``StoreError`` when the database could not, ``RecordError`` when a value can't be stored.
    """

    async def execute(self, sql: str, *args: Value) -> int:
        """Run a statement; return the number of rows touched."""

    async def fetch(self, sql: str, *args: Value) -> Sequence[Row]: ...

    async def many(self, statement: Many, rows: Sequence[Sequence[Value]]) -> Sequence[Row]:
        """Run a statement over rows; return what it does (``RETURNING``).

        It may be run once or for each part of the rows: it must not depend on their total.
        """

    async def script(self, text: str) -> None:
        """Run several statements, each ended by ``;`` at the end of a line.

        Text behind ``--postgresql`` at the beginning of a line is for PostgreSQL alone.
        """

    async def alone(self, name: str) -> None:
        """Wait until no other transaction of any process holds the lock ``name``; hold it to the
        end of this one."""


class Database(Protocol):
    partitioned: bool
    """Tables that grow with time are partitioned by time, so that old partitions can be dropped."""

    async def fetch(self, sql: str, *args: Value) -> Sequence[Row]:
        """Read rows, without waiting for transactions or seeing part of one."""

    async def now(self) -> float:
        """Return the time by the database's clock, in Unix seconds."""

    async def writable(self) -> bool:
        """Return whether it accepts changes, as far as is known without making one."""

    async def has_table(self, name: str) -> bool:
        """Return whether there is a table of that name."""

    async def size(self) -> Size:
        """Return the bytes that it takes on its disk, with indexes."""

    def transaction(self, *, durable: bool = False) -> AbstractAsyncContextManager[Session]:
        """Begin a transaction: commit at the end of the block, roll back after an exception.

        ``durable`` ones survive a power cut as soon as they are committed; the others survive the
        end of any process, and a power cut at the latest a moment later.
        """

    async def close(self) -> None: ...


def insertion(table: str, columns: Mapping[str, str], *, returning: Sequence[str] = ()) -> Many:
    """Return a statement that inserts rows and leaves alone those that exist.

    ``columns`` maps names to types.

    ``returning`` names the columns to return of each new row.
    """
    names = ", ".join(columns)
    back = f" RETURNING {', '.join(returning)}" if returning else ""
    return Many(
        f"WITH given ({names}) AS (given) INSERT INTO {table} ({names})"  # noqa: S608 - our names
        f" SELECT {names} FROM given WHERE true ON CONFLICT DO NOTHING{back}",
        tuple(columns.values()),
    )
