"""A copy of a SQLite database is of one moment, whatever happens to it meanwhile."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from runtime.errors import NoStore, StoreError
from sql.sqlite_copy import PAGES, check_sqlite, copy_sqlite


def database(path: Path, megabytes: int) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE t (n BIGINT, data BYTEA)")
    connection.execute("BEGIN")
    for number in range(megabytes * 16):
        connection.execute("INSERT INTO t VALUES (?, ?)", (number, bytes([number % 256]) * 65_536))
    connection.execute("COMMIT")
    return connection


def rows(path: Path) -> list[tuple[int, bytes]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute("SELECT n, data FROM t ORDER BY n").fetchall()
    finally:
        connection.close()


def test_what_is_written_between_two_steps_is_not_in_it_and_nobody_waits(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    writer = database(source, 24)
    writer.execute("PRAGMA busy_timeout = 0")
    before, steps = rows(source), 0

    def write() -> None:
        nonlocal steps
        steps += 1
        # At both ends of the file: pages that were copied, and pages that were not.
        writer.execute("UPDATE t SET n = -n WHERE n IN (1, 300)")
        writer.execute("INSERT INTO t VALUES (?, 'new')", (10_000 + steps,))

    copy_sqlite(source, target, write)
    assert steps >= 24 * 2**20 // 4096 // PAGES  # it did not begin anew for ever either
    assert rows(target) == before
    assert sorted(path.name for path in tmp_path.glob("target*")) == ["target"]
    writer.close()


def test_what_is_no_database_or_damaged_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with pytest.raises(NoStore):
        copy_sqlite(source, tmp_path / "a", lambda: None)
    assert not source.exists()
    source.write_bytes(b"hello" * 1000)
    with pytest.raises(StoreError, match="can't be copied"):
        copy_sqlite(source, tmp_path / "b", lambda: None)
    damaged = tmp_path / "damaged"
    database(damaged, 1).close()
    content = bytearray(damaged.read_bytes())
    content[4096:12_288] = b"\xff" * 8192
    damaged.write_bytes(content)
    with pytest.raises(StoreError):
        copy_sqlite(damaged, tmp_path / "c", lambda: None)
    with pytest.raises(StoreError):
        check_sqlite(damaged, "the store")
