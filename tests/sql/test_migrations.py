"""Migrations are applied once, in order, and never changed afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.errors import StoreError
from sql import migrations
from sql.migrations import Migration, migrate, pending
from sql.sqlite import SqliteDatabase
from tests.contracts.samples import NOON

FIRST = Migration(1, "0001_first.sql", "CREATE TABLE a (x BIGINT);\n")
SECOND = Migration(2, "0002_second.sql", "CREATE TABLE b (x BIGINT);\nINSERT INTO b VALUES (1);\n")


async def test_migrations_are_applied_once_in_order_and_recorded(database: SqliteDatabase) -> None:
    assert await migrate(database, [FIRST], NOON) == ["0001_first.sql"]
    assert await migrate(database, [FIRST, SECOND], NOON + 1) == ["0002_second.sql"]
    assert await migrate(database, [FIRST, SECOND], NOON + 2) == []
    assert await database.fetch("SELECT * FROM schema_migrations ORDER BY number") == [
        (1, "0001_first.sql", FIRST.sha256, NOON),
        (2, "0002_second.sql", SECOND.sha256, NOON + 1),
    ]
    await database.close()


async def test_a_failing_migration_leaves_nothing_behind(database: SqliteDatabase) -> None:
    broken = Migration(2, "0002_broken.sql", "CREATE TABLE c (x BIGINT);\nNONSENSE;\n")
    with pytest.raises(StoreError, match="NONSENSE"):
        await migrate(database, [FIRST, broken], NOON)
    tables = await database.fetch("SELECT name FROM sqlite_master WHERE type = 'table'")
    assert sorted(row[0] for row in tables) == ["a", "schema_migrations"]
    assert await migrate(database, [FIRST, SECOND], NOON) == ["0002_second.sql"]
    await database.close()


def test_a_migration_edited_after_it_was_applied_is_refused() -> None:
    with pytest.raises(StoreError, match=r"0001_first.sql was edited after it was applied"):
        pending([FIRST], {1: ("0001_first.sql", "another hash")})


def test_other_line_ends_are_no_edit() -> None:
    other = FIRST._replace(text=FIRST.text.replace("\n", "\r\n"))
    assert pending([other, SECOND], {1: (FIRST.name, FIRST.sha256)}) == [SECOND]


def test_a_store_of_a_newer_release_is_refused() -> None:
    applied = {1: (FIRST.name, FIRST.sha256), 2: (SECOND.name, SECOND.sha256)}
    with pytest.raises(StoreError, match=r"newer release .*0002_second\.sql.*; upgrade this"):
        pending([FIRST], applied)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "without gaps"),
        (["0002_second.sql"], "without gaps"),
        (["0001_a.sql", "0001_b.sql"], "without gaps"),
        (["first.sql"], "named like"),
    ],
)
def test_files_that_are_no_row_of_migrations_are_refused(
    tmp_path: Path, names: list[str], words: str
) -> None:
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(StoreError, match=words):
        migrations.find(tmp_path)
