"""URLs, migrations, and what SQLite says when its file can't be used."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fabric_server.storage.connect import open_bus, open_cache, open_store
from ledger.reports import LedgerReports
from ledger.tables import LedgerTables
from runtime.errors import BackendError, StoreError
from sql import migrations
from sql.migrations import Migration, migrate, pending
from sql.sqlite import SqliteDatabase, explain
from tests.contracts.samples import NOON, entry, key

FIRST = Migration(1, "0001_first.sql", "CREATE TABLE a (x BIGINT);\n")
SECOND = Migration(2, "0002_second.sql", "CREATE TABLE b (x BIGINT);\nINSERT INTO b VALUES (1);\n")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


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


# ── URLs ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://host/db", "store = 'mysql://host/db': this version knows only sqlite:///path"),
        ("postgresql://joe:secret@host/db", r"postgresql://joe:\*\*\*@host/db"),
        ("store.db", "store = 'store.db': this version knows only sqlite:///path"),
        ("", "this version knows only sqlite:///path"),
        ("sqlite:store.db", "this version knows only sqlite:///path"),
        ("sqlite://store.db", "write the path after three slashes: sqlite:///store.db"),
    ],
)
async def test_a_store_url_of_another_kind_is_refused_with_what_is_known(
    url: str, words: str
) -> None:
    with pytest.raises(BackendError, match=words) as caught:
        await open_store(url)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_the_setting_that_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="--store = 'x'"):
        await open_store("x", setting="--store")
    with pytest.raises(BackendError, match="cache = 'mysql://host': this version knows only mem"):
        await open_cache("mysql://host")
    with pytest.raises(BackendError, match="bus = 'memory://big': this version knows only mem"):
        await open_bus("memory://big", directory=tmp_path, limit=2**20)


async def test_the_path_is_taken_as_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "a b" / "50%25?#.db"
    store = await open_store(f"sqlite:///{path}")
    await store.close()
    assert path.exists()


async def test_the_file_is_for_its_owner_only(path: Path) -> None:
    store = await open_store(f"sqlite:///{path.parent}/new/store.db")
    await store.create_key(key())
    made = [path.parent / "new", *(path.parent / "new").iterdir()]
    assert len(made) == 4  # the folder, the file, its log and the log's index
    assert all(stat.S_IMODE(one.stat().st_mode) & 0o077 == 0 for one in made)
    await store.close()


# ── migrations ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def database(path: Path) -> SqliteDatabase:
    return SqliteDatabase(path)


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


async def test_a_store_of_a_newer_release_is_not_opened(path: Path) -> None:
    await _make(path)
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO schema_migrations VALUES (99, '0099_far.sql', 'x', 0)")
    connection.close()
    with pytest.raises(StoreError, match="newer release"):
        await open_store(f"sqlite:///{path}")


async def test_processes_that_make_the_same_store_at_once_share_it(shared_url: str) -> None:
    program = (
        "import asyncio, sys\n"
        "from fabric_server.storage.connect import open_store\n"
        "from tests.contracts.samples import entry, key\n"
        "async def main(name):\n"
        "    store = await open_store(sys.argv[1])\n"
        "    await store.create_key(key(name))\n"
        "    for number in range(20):\n"
        "        await store.write([], [entry(number, request_id=f'{name}{number}')])\n"
        "    await store.close()\n"
        "asyncio.run(main(sys.argv[2]))\n"
    )
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", program, shared_url, name)
        for name in ("one", "two", "three")
    ]
    assert [await process.wait() for process in processes] == [0, 0, 0]
    store = await open_store(shared_url)
    assert sorted(row.name for row in await store.keys()) == ["one", "three", "two"]
    (total,) = await store.usage(0, 1e12)
    assert total.requests == 60
    await store.close()


# ── a file that can't be used ─────────────────────────────────────────────────────────────────


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
    endless = (
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000000)"
        " SELECT COUNT(*) FROM n"
    )
    async with asyncio.timeout(10):
        slow = asyncio.create_task(database.fetch(endless))
        await asyncio.sleep(0)
        assert await database.fetch("SELECT 1") == [(1,)]
        assert not slow.done()
        slow.cancel()
        await asyncio.wait([slow])
        assert slow.cancelled()
        assert await asyncio.gather(*(database.fetch("SELECT 1") for _ in range(5)))
        await database.close()


async def test_a_report_that_takes_too_long_says_what_to_ask_instead(path: Path) -> None:
    await _make(path)
    database = SqliteDatabase(path)
    reports = LedgerReports(database, report_seconds=0.0)
    await LedgerTables(database).write([], [entry(1)])
    with pytest.raises(StoreError, match="ask for a shorter time"):
        await reports.usage(0, 1e12)
    assert await reports.request("req_00000001") == entry(1)
    await database.close()


async def test_nothing_is_written_through_a_reader(database: SqliteDatabase) -> None:
    with pytest.raises(StoreError, match="can't be written"):
        await database.fetch("CREATE TABLE t (x BIGINT)")
    await database.close()
