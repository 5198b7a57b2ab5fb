"""Making a backup, while the server runs or not.

The files of the data directory come first, the store last.  What leaves the spool meanwhile is in
the store by then, so each record is in one of the two, or in both, which does no harm.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fabric_server.backup import data_files
from fabric_server.backup.age import Target
from fabric_server.backup.archive import (
    FORMAT,
    STORE,
    About,
    ArchiveWriter,
    Counts,
    Migrated,
)
from fabric_server.backup.postgres_parts import write_tables
from fabric_server.backup.problem import BackupProblem
from runtime.errors import StoreError
from runtime.extras import needed_by
from runtime.version import VERSION
from sql import migrations
from sql.connect import open_database
from sql.sqlite import SqliteDatabase, path_of
from sql.sqlite_copy import copy_sqlite

SQLITE = f"{STORE}/fabric.sqlite"
STALE_SECONDS = 86_400.0
"""Age after which what a killed backup has left is removed."""

# Of columns that every release has.
KEYS = (
    "SELECT COUNT(*) FROM keys WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > $1)"
)
NODES = "SELECT COUNT(*) FROM nodes WHERE revoked_at IS NULL"
_APPLIED = "SELECT number, name, sha256 FROM schema_migrations ORDER BY number"


@dataclass(frozen=True, kw_only=True)
class Server:
    """The server of which a backup is made."""

    data: Path
    store_url: str
    """Empty to leave the store out."""
    addresses: Sequence[str]
    given: Sequence[str]
    """Settings that come from flags or the environment, by name."""
    settings_file: Path | None
    """The file with the settings, if it is not ``fabric.toml`` in ``data``."""
    elsewhere: Sequence[Path]
    """Other files that the server needs, and that stay out of the backup."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """The content of a backup that was made."""

    about: About
    counts: Counts
    parts: int


def kind_of(store_url: str) -> str:
    """Return the kind of a store as ``About`` has it."""
    if not store_url:
        return "none"
    return "sqlite" if store_url.startswith("sqlite:") else "postgresql"


async def make_backup(server: Server, target: Target, advance: Callable[[int], None]) -> Made:
    """Write a backup.  Raises ``BackupProblem`` and ``StoreError``."""
    store_path = path_of(server.store_url) if kind_of(server.store_url) == "sqlite" else None
    files = data_files.find(server.data, store_path, server.settings_file)
    about = About(
        format=FORMAT,
        version=VERSION,
        at=time.time(),
        store=kind_of(server.store_url),
        schema=await _schema(server.store_url),
        addresses=list(server.addresses),
        given=list(server.given),
        left_out=[*files.left_out, *map(str, server.elsewhere)],
    )
    archive = ArchiveWriter(target, about, advance)
    for name, path in files.files:
        _add_file(archive, name, path)
    counts = Counts()
    if store_path is not None:
        counts = await _add_sqlite(archive, server.data, store_path, about, advance)
    elif server.store_url:
        counts = await _add_postgres(archive, server.store_url, about)
    archive.finish(counts)
    return Made(about=about, counts=counts, parts=len(archive.parts))


def _add_file(archive: ArchiveWriter, name: str, path: Path) -> None:
    opened = data_files.open_file(path)
    if opened is None:
        return
    file, size = opened
    with file:
        if size <= data_files.SMALL:
            archive.add_bytes(name, file.read(data_files.SMALL))
        else:
            archive.add_file(name, file, size)


async def _schema(store_url: str) -> list[Migrated]:
    """Return the migrations of the store.  Raises ``StoreError``, also for a newer release's."""
    if not store_url:
        return []
    database = await open_database(store_url, create=False)
    try:
        return _known(await database.fetch(_APPLIED))
    finally:
        await database.close()


def _known(rows: Sequence[Sequence[Any]]) -> list[Migrated]:
    known = migrations.find(migrations.directory())
    migrations.pending(known, {row[0]: (row[1], row[2]) for row in rows})
    return [Migrated(*row) for row in rows]


# ── SQLite ────────────────────────────────────────────────────────────────────────────────────


async def _add_sqlite(
    archive: ArchiveWriter,
    data: Path,
    store: Path,
    about: About,
    advance: Callable[[int], None],
) -> Counts:
    remove_stale(data)
    _require_room(data, store)
    with tempfile.TemporaryDirectory(prefix=data_files.WORKING, dir=data) as directory:
        copy = Path(directory) / "fabric.sqlite"
        copy_sqlite(store, copy, lambda: advance(0))
        database = SqliteDatabase(copy)
        try:
            rows = await database.fetch(_APPLIED)
            keys = await database.fetch(KEYS, about.at)
            nodes = await database.fetch(NODES)
        finally:
            await database.close()
        _require_same(about, rows)
        with copy.open("rb") as file:
            archive.add_file(SQLITE, file, copy.stat().st_size)
    return Counts(keys[0][0], nodes[0][0])


def _require_room(data: Path, store: Path) -> None:
    room, needed = shutil.disk_usage(data).free, store.stat().st_size
    if room < needed:
        raise BackupProblem(
            f"the copy of the store needs {needed:,} bytes in {data} for a while, and {room:,} are "
            "free there: make room, or take another way to back up the store and leave it out here "
            "with --without-store."
        )


def remove_stale(data: Path) -> None:
    """Remove what backups and restores have left that were killed."""
    for path in data.glob(f"{data_files.WORKING}*"):
        if path.stat().st_mtime < time.time() - STALE_SECONDS:
            shutil.rmtree(path)


# ── PostgreSQL ────────────────────────────────────────────────────────────────────────────────


async def _add_postgres(archive: ArchiveWriter, url: str, about: About) -> Counts:
    with needed_by("PostgreSQL"):
        from sql.postgres_copy import tables_out

    async with tables_out(url) as tables:
        _require_same(about, await tables.rows(_APPLIED))
        await write_tables(tables, archive)
        keys = await tables.rows(KEYS, about.at)
        nodes = await tables.rows(NODES)
    return Counts(keys[0][0], nodes[0][0])


def _require_same(about: About, rows: Sequence[Sequence[Any]]) -> None:
    if _known(rows) != about.schema:
        raise StoreError("the schema of the store was changed while it was copied: start again")
