"""Migrations: the numbered ``.sql`` files beside this module, applied in order."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from runtime.errors import StoreError
from sql.database import Database

_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    number BIGINT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    applied_at DOUBLE PRECISION NOT NULL
)
"""


class Migration(NamedTuple):
    number: int
    name: str
    text: str

    @property
    def sha256(self) -> str:
        # Line ends that git has converted on this machine are no edit.
        return hashlib.sha256(self.text.replace("\r\n", "\n").encode()).hexdigest()


def directory() -> Path:
    """Return the folder of this package, which holds the migrations."""
    return Path(__file__).parent


def find(folder: Path) -> list[Migration]:
    """Return the migrations in order.  Raises ``StoreError`` if they are not numbered 1, 2, 3, …"""
    found = []
    for path in sorted(folder.glob("*.sql")):
        match = re.fullmatch(r"(\d{4})_(\w+)", path.stem)
        if match is None:
            raise StoreError(f"{path}: migrations must be named like 0001_what_it_does.sql")
        found.append(Migration(int(match[1]), path.name, path.read_text("utf-8")))
    if [m.number for m in found] != list(range(1, len(found) + 1)) or not found:
        raise StoreError(f"{folder}: migrations must be numbered 0001, 0002, … without gaps")
    return found


def pending(
    known: Sequence[Migration], applied: Mapping[int, tuple[str, str]]
) -> Sequence[Migration]:
    """Return what is still to be applied; ``applied`` maps numbers to (name, sha256).

    Raises ``StoreError`` when the database has other migrations than ``known``.
    """
    for number, (name, sha256) in sorted(applied.items()):
        if number > len(known):
            raise StoreError(
                f"the store is of a newer release (migration {name}); upgrade this program"
            )
        if known[number - 1].sha256 != sha256:
            raise StoreError(
                f"migration {known[number - 1].name} was edited after it was applied to this "
                "store; restore the file and write a new migration for the change"
            )
    return [m for m in known if m.number not in applied]


class Status(NamedTuple):
    name: str
    applied_at: float | None
    """Unix seconds; None: not yet."""


async def status(database: Database, known: Sequence[Migration]) -> list[Status]:
    """Return which migrations were applied, and when.  Raises what ``pending`` raises."""
    async with database.transaction() as session:
        await session.alone("migrations")
        await session.execute(_TABLE)
        rows = await session.fetch("SELECT number, name, sha256, applied_at FROM schema_migrations")
    pending(known, {row[0]: (row[1], row[2]) for row in rows})
    applied = {row[0]: row[3] for row in rows}
    return [Status(m.name, applied.get(m.number)) for m in known]


async def is_new(database: Database) -> bool:
    """Return whether no migration was ever applied; nothing is changed."""
    if not await database.has_table("schema_migrations"):
        return True
    return not await database.fetch("SELECT 1 FROM schema_migrations LIMIT 1")


async def migrate(database: Database, known: Sequence[Migration], now: float) -> list[str]:
    """Apply pending migrations, each in a transaction of its own; return their names.

    Several processes may do this at once: what is pending is looked up inside the transaction.
    """
    done: list[str] = []
    while True:
        async with database.transaction(durable=True) as session:
            await session.alone("migrations")
            await session.execute(_TABLE)
            rows = await session.fetch("SELECT number, name, sha256 FROM schema_migrations")
            todo = pending(known, {row[0]: (row[1], row[2]) for row in rows})
            if not todo:
                return done
            await session.script(todo[0].text)
            await session.execute(
                "INSERT INTO schema_migrations (number, name, sha256, applied_at)"
                " VALUES ($1, $2, $3, $4)",
                todo[0].number,
                todo[0].name,
                todo[0].sha256,
                now,
            )
            done.append(todo[0].name)
