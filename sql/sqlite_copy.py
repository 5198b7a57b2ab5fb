"""A copy of a SQLite database as it is at one moment, while others read and write it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from runtime.errors import NoStore, StoreError

PAGES = 2048
"""Pages copied between two calls of ``advance``."""


def copy_sqlite(source: Path, target: Path, advance: Callable[[], None]) -> None:
    """Copy a database into a new file, and check the copy.  Blocks.

    ``advance`` is called again and again meanwhile.  One transaction reads the whole,
    so that it need not begin anew when something is written meanwhile; writers don't wait for it.
    Raises ``StoreError``.
    """
    if not source.is_file() or not source.stat().st_size:
        raise NoStore(f"there is no store in {source}")
    try:
        reader = sqlite3.connect(source, isolation_level=None)
        try:
            reader.execute("BEGIN")
            reader.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
            writer = sqlite3.connect(target, isolation_level=None)
            try:
                reader.backup(
                    writer,
                    pages=PAGES,
                    progress=lambda *_: advance(),
                    sleep=0,
                )
                # One file that stands alone, without another for what was written last.
                writer.execute("PRAGMA journal_mode = DELETE")
                check(writer, f"the store {source}")
            finally:
                writer.close()
        finally:
            reader.close()
    except sqlite3.Error as error:
        raise StoreError(f"the store {source} can't be copied to {target}: {error}") from error


def check_sqlite(path: Path, where: str) -> None:
    """Raise ``StoreError`` if the file is no sound database."""
    try:
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            check(connection, where)
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise StoreError(f"{where} is no sound SQLite database: {error}") from error


def check(connection: sqlite3.Connection, where: str) -> None:
    """Raise ``StoreError`` if pages or rows of a database are damaged."""
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise StoreError(
            f"{where} is damaged ({found}): restore an older backup, or save what is left of it "
            "with 'sqlite3 FILE .recover'"
        )
