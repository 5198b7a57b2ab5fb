"""SQLite: files that can't be used, locks, full disks, slow reports."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric_server.storage.connect import open_store
from ledger.reports import LedgerReports
from ledger.tables import LedgerTables
from runtime.errors import StoreError
from sql.database import Many, Row
from sql.sqlite import READERS, SqliteDatabase, explain
from tests.contracts.samples import entry

ENDLESS = (
    "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000000)"
    " SELECT COUNT(*) FROM n"
)


@pytest.fixture
def no_store(path: Path) -> Path:
    path.write_text("Dear diary, today I did not back up anything. " * 100)
    return path


@pytest.fixture
def damaged(path: Path) -> Path:
    asyncio.run(_make(path))
    good = path.read_bytes()
    path.write_bytes(good[:4096] + b"\xff" * (len(good) - 4096))
    return path


async def _make(path: Path) -> None:
    await (await open_store(f"sqlite:///{path}")).close()


@pytest.fixture
def other(path: Path) -> Iterator[sqlite3.Connection]:
    """Another process's connection to the same file."""
    connection = sqlite3.connect(path, isolation_level=None)
    yield connection
    connection.close()


async def test_a_file_that_is_no_store_is_named_and_left_alone(no_store: Path) -> None:
    with pytest.raises(StoreError, match=r"store\.db is damaged or not a SQLite file: restore"):
        await open_store(f"sqlite:///{no_store}")
    with no_store.open() as file:
        assert file.readline().startswith("Dear diary")


async def test_a_damaged_file_is_named(damaged: Path) -> None:
    with pytest.raises(StoreError, match="is damaged"):
        await open_store(f"sqlite:///{damaged}")


async def test_a_folder_that_can_not_be_written_is_named() -> None:
    with pytest.raises(StoreError, match=r"can't create the store /proc/no/store\.db"):
        await open_store("sqlite:////proc/no/store.db")


async def test_a_folder_in_the_place_of_the_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="can't be opened: check the path"):
        await open_store(f"sqlite:///{tmp_path}")


async def test_a_locked_file_is_waited_for_and_then_named(
    path: Path, other: sqlite3.Connection
) -> None:
    await _make(path)
    database = SqliteDatabase(path, busy_seconds=0.05)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match=r"store\.db is locked by another process"):
        async with database.transaction():
            pass
    assert (await database.fetch("SELECT number FROM revision"))[0] == (0,)
    other.execute("ROLLBACK")
    async with database.transaction() as session:
        await session.execute("UPDATE revision SET number = 1")
    await database.close()


async def test_a_full_disk_is_named(path: Path, other: sqlite3.Connection) -> None:
    other.execute("PRAGMA max_page_count = 4")
    other.execute("CREATE TABLE t (x)")
    with pytest.raises(sqlite3.OperationalError) as caught:
        other.execute("INSERT INTO t VALUES (zeroblob(100000))")
    told = explain(caught.value, "the store")
    assert isinstance(told, StoreError)
    assert str(told) == "the store can't grow: its disk is full; free some space"


def test_a_disk_that_takes_no_more_leaves_the_store_as_it_was(path: Path) -> None:
    """With a real limit on the size of files, in a process of its own."""
    program = (
        "import asyncio, resource, sys\n"
        "from runtime.errors import StoreError\n"
        "from fabric_server.storage.connect import open_store\n"
        "from tests.contracts.samples import entry\n"
        "async def main():\n"
        "    store = await open_store(sys.argv[1])\n"
        "    await store.write([], [entry(1)])\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))\n"
        "    try:\n"
        "        await store.write([], [entry(n) for n in range(2, 5000)])\n"
        "    except StoreError as error:\n"
        "        print(error)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)\n"
        "    await store.write([], [entry(5000)])\n"
        "    print(len(await store.requests(limit=10000)))\n"
        "    await store.close()\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, f"sqlite:///{path}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    said, count = done.stdout.splitlines()
    assert "check the disk" in said or "its disk is full" in said
    assert count == "2"


async def test_reports_do_not_hold_up_look_ups_and_stop_when_nobody_waits(path: Path) -> None:
    database = SqliteDatabase(path)
    async with asyncio.timeout(10):
        slow = asyncio.create_task(database.fetch(ENDLESS))
        await asyncio.sleep(0)
        assert await database.fetch("SELECT 1") == [(1,)]
        assert not slow.done()
        slow.cancel()
        await asyncio.wait([slow])
        assert slow.cancelled()
        assert await asyncio.gather(*(database.fetch("SELECT 1") for _ in range(5)))
        await database.close()


async def test_a_read_that_is_cancelled_before_its_statement_begins_ends_too(path: Path) -> None:
    database = SqliteDatabase(path)
    async with asyncio.timeout(30):
        for _ in range(20):
            read = asyncio.create_task(database.fetch(ENDLESS))
            await asyncio.sleep(0)
            read.cancel()
            await asyncio.wait([read])
            assert read.cancelled()
    await database.close()


async def test_a_report_that_takes_too_long_says_what_to_ask_instead(path: Path) -> None:
    await _make(path)
    database = SqliteDatabase(path)
    reports = LedgerReports(database, report_seconds=0.0)
    await LedgerTables(database).write([], [entry(1)])
    # The report waits for a reader: one that has a reader can be done before its time is over.
    async with asyncio.timeout(10):
        slow = [asyncio.create_task(database.fetch(ENDLESS)) for _ in range(READERS)]
        await asyncio.sleep(0)
        with pytest.raises(StoreError, match="ask for a shorter time"):
            await reports.requests()
        for report in slow:
            report.cancel()
        await asyncio.wait(slow)
    assert await reports.request("req_00000001") == entry(1)
    await database.close()


async def test_nothing_is_written_through_a_reader(database: SqliteDatabase) -> None:
    with pytest.raises(StoreError, match="can't be written"):
        await database.fetch("CREATE TABLE t (x BIGINT)")
    await database.close()


# ── values ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("count", [1, 31, 33, 300])
async def test_many_rows_keep_truth_values_numbers_and_nulls(path: Path, count: int) -> None:
    some: list[Row] = [
        ("a", True, 1, None, 0.5),
        ("b", False, 0, "", -0.0),
        ("c", None, None, "c", None),
        ("d", True, 2**63 - 1, None, 1e300),
    ]
    rows = [some[number % len(some)] for number in range(count)]
    statement = Many(
        "WITH given (a, b, c, d, e) AS (given) INSERT INTO t (a, b, c, d, e)"
        " SELECT a, b, c, d, e FROM given WHERE true",
        ("TEXT", "BOOLEAN", "BIGINT", "TEXT", "DOUBLE PRECISION"),
    )
    database = SqliteDatabase(path)
    try:
        async with database.transaction() as session:
            await session.script("CREATE TABLE t (a TEXT, b BOOLEAN, c BIGINT, d TEXT, e DOUBLE);")
            await session.many(statement, rows)
        assert list(await database.fetch("SELECT a, b, c, d, e FROM t ORDER BY rowid")) == rows
        types = await database.fetch("SELECT DISTINCT typeof(b) FROM t ORDER BY 1")
        assert {row[0] for row in types} <= {"integer", "null"}
    finally:
        await database.close()
