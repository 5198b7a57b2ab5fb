"""Restoring a backup into an empty data directory.

All is written beside its place first, and read to the end of the backup; then it is put there.
Whatever is wrong with a backup, nothing that was there before is touched.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from fabric_server.backup import data_files
from fabric_server.backup.age import DAMAGED
from fabric_server.backup.archive import DATA, About, ArchiveReader, Counts, Part
from fabric_server.backup.making import KEYS, NODES, SQLITE, kind_of
from fabric_server.backup.postgres_parts import read_tables
from fabric_server.backup.problem import BackupProblem
from fabric_server.storage.connect import open_cache, open_store
from fabric_server.storage.revocations import merge_revocations
from fabric_server.storage.store import SqlStore
from runtime.errors import BackendError, StoreError
from runtime.extras import needed_by
from sql import migrations
from sql.connect import open_database
from sql.sqlite import path_of
from sql.sqlite_copy import check_sqlite

IGNORED = ("lost+found",)


@dataclass(frozen=True, kw_only=True)
class Place:
    """The place to which a backup is restored."""

    data: Path
    force: bool
    """Move what is there out of the way."""
    with_store: bool
    store_url: Callable[[Path | None], str]
    """The store of a server that has the settings file given."""
    cache_url: Callable[[Path | None], str]


@dataclass(frozen=True, kw_only=True)
class Restored:
    about: About
    counts: Counts
    store_url: str
    """Empty if the store was left out."""
    revoked_again: int
    cache_problem: str
    """Why the cache can't say what was revoked; ``memory`` if there is none that outlives servers,
    empty if it said so."""
    moved: list[Path]
    """Where what was there before is now."""


def check_archive(archive: ArchiveReader) -> None:
    """Read a backup to its end, and write nothing.  Raises ``BackupProblem``."""
    _require_known(archive.about)
    for _ in archive.parts():
        pass


def require_empty(data: Path) -> None:
    """Raise ``BackupProblem`` if there is something in the data directory."""
    found = _entries(data)
    if found:
        names = ", ".join(path.name for path in found[:5])
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise BackupProblem(
            f"{data} is not empty: it has {names}{more}. Set --data to a new directory, or keep "
            "what is there beside what is restored, with --force."
        )


async def restore_archive(archive: ArchiveReader, place: Place) -> Restored:
    """Restore a backup.  Raises ``BackupProblem``, ``BackendError`` and OSError."""
    _require_known(archive.about)
    with _working(place.data) as directory:
        restoring = _Restoring(archive, place, directory)
        return await restoring.run()


class _Restoring:
    def __init__(self, archive: ArchiveReader, place: Place, directory: Path) -> None:
        self._archive = archive
        self._about = archive.about
        self._place = place
        self._files = directory / "data"
        self._files.mkdir(mode=0o700)
        self._own = _owner(place.data)
        self._own_path(self._files)
        self._wanted = place.with_store and self._about.store != "none"
        self._store_url = ""
        self._sqlite = directory / "fabric.sqlite"

    async def run(self) -> Restored:
        async with AsyncExitStack() as stack:
            await self._read(stack)
        moved: list[Path] = []
        counts, again, problem = self._archive.counts, 0, "memory"
        if self._store_url:
            sqlite = self._about.store == "sqlite"
            url = f"sqlite:///{self._sqlite.as_posix()}" if sqlite else self._store_url
            counts, again, problem = await self._finish_store(url)
            if sqlite:
                moved += self._put_sqlite()
        moved += self._put_files()
        return Restored(
            about=self._about,
            counts=counts,
            store_url=self._store_url,
            revoked_again=again,
            cache_problem=problem,
            moved=moved,
        )

    # ── reading ───────────────────────────────────────────────────────────────────────────────

    async def _read(self, stack: AsyncExitStack) -> None:
        """Read all; the transaction of PostgreSQL is committed when the stack ends."""
        parts = self._archive.parts()
        for part in parts:
            if part.name.startswith(f"{DATA}/"):
                data_files.put(part, self._files, self._own)
            elif self._wanted:
                await self._read_store(part, parts, stack)
        if self._wanted and not self._store_url:
            raise BackupProblem(DAMAGED)

    async def _read_store(self, part: Part, parts: Iterator[Part], stack: AsyncExitStack) -> None:
        if self._store_url:
            raise BackupProblem(DAMAGED)
        self._store_url = await self._choose_store()
        if self._about.store == "sqlite":
            if part.name != SQLITE:
                raise BackupProblem(DAMAGED)
            data_files.write_part(part, self._sqlite, self._own)
            return
        with needed_by("PostgreSQL"):
            from sql.postgres_copy import tables_in

        await _make_tables(self._store_url, self._about)
        tables = await stack.enter_async_context(tables_in(self._store_url))
        await read_tables(part, parts, tables)

    async def _choose_store(self) -> str:
        """Return the URL at which the store will be.  Raises ``BackupProblem`` if it can't."""
        file = self._files / "fabric.toml"
        url = self._place.store_url(file if file.exists() else None)
        kind = self._about.store
        if kind_of(url) != kind:
            wanted = "an empty PostgreSQL database" if kind == "postgresql" else "sqlite:///PATH"
            raise BackupProblem(
                f"it holds a store of the kind {kind}, and the setting 'store' names another: set "
                f"it to {wanted}, in the environment or with --store, or restore the other files "
                "alone, with --without-store."
            )
        if kind == "postgresql":
            with needed_by("PostgreSQL"):
                from sql.postgres_copy import in_use

            if (table := await in_use(url)) is not None:
                raise BackupProblem(
                    f"the PostgreSQL database is not empty: its table {table} has rows. Create "
                    "another database and set 'store' to it; to use what is in this one, restore "
                    "with --without-store."
                )
        else:
            path = path_of(url)
            if (
                path is not None
                and self._elsewhere(path)
                and path.exists()
                and not self._place.force
            ):
                raise BackupProblem(
                    f"there is a store in {path}: set 'store' to another path, or keep it beside "
                    "what is restored, with --force."
                )
        return url

    # ── the store ─────────────────────────────────────────────────────────────────────────────

    async def _finish_store(self, url: str) -> tuple[Counts, int, str]:
        """Bring the store up to date; revoke what the cache knows to have been revoked."""
        if self._about.store == "sqlite":
            check_sqlite(self._sqlite, "the store in the backup")
        store = await open_store(url)
        try:
            again, problem = 0, "memory"
            file = self._files / "fabric.toml"
            cache_url = self._place.cache_url(file if file.exists() else None)
            if cache_url != "memory://":
                again, problem = await _merge(store, cache_url)
            keys = await store.database.fetch(KEYS, time.time())
            nodes = await store.database.fetch(NODES)
            return Counts(keys[0][0], nodes[0][0]), again, problem
        finally:
            await store.close()

    def _elsewhere(self, path: Path) -> bool:
        """Return whether the store is not in the data directory."""
        return path.absolute().parent != self._place.data.absolute()

    def _put_sqlite(self) -> list[Path]:
        path = path_of(self._store_url)
        assert path is not None, "a store in memory has no backup"
        self._own_path(self._sqlite)
        if not self._elsewhere(path):
            self._sqlite.rename(self._files / path.name)
            return []
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        moved = []
        for end in data_files.BESIDE_SQLITE:
            if (old := Path(f"{path}{end}")).exists():
                moved.append(old.rename(f"{path}.{_kept_name()}{end}"))
        shutil.move(self._sqlite, path)
        return moved

    # ── the files ─────────────────────────────────────────────────────────────────────────────

    def _put_files(self) -> list[Path]:
        """Move the files to their places, the certificates last: they make it a server's data."""
        data, moved = self._place.data, []
        for path in self._files.rglob("*"):
            if path.is_dir():
                self._own_path(path)
        if old := _entries(data):
            kept = data / _kept_name()
            kept.mkdir(mode=0o700)
            self._own_path(kept)
            for path in old:
                path.rename(kept / path.name)
            moved.append(kept)
        for path in sorted(self._files.iterdir(), key=lambda one: one.name == "certs"):
            path.rename(data / path.name)
        return moved

    def _own_path(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            self._own(descriptor)
        finally:
            os.close(descriptor)


async def _make_tables(url: str, about: About) -> None:
    """Make the tables as they were in the backup; newer migrations follow when it is restored."""
    known = migrations.find(migrations.directory())
    database = await open_database(url)
    try:
        await migrations.migrate(database, known[: len(about.schema)], time.time())
    except StoreError as error:
        raise BackupProblem(
            f"the database has tables of another release ({error}): create an empty one, and set "
            "'store' to it."
        ) from None
    finally:
        await database.close()


async def _merge(store: SqlStore, cache_url: str) -> tuple[int, str]:
    try:
        cache = await open_cache(cache_url)
    except BackendError as error:
        return 0, str(error)
    try:
        return len(await merge_revocations(store.database, cache)), ""
    except BackendError as error:
        return 0, str(error)
    finally:
        await cache.close()


def _require_known(about: About) -> None:
    """Raise ``BackupProblem`` if the store is of a newer release, or of another program."""
    known = migrations.find(migrations.directory())
    if len(about.schema) > len(known):
        raise BackupProblem(
            f"it was made by Fabric {about.version} with the schema {about.schema[-1].name}, and "
            f"this release knows no newer one than {known[-1].name}: install {about.version} or a "
            "newer release, and restore with that."
        )
    for applied, migration in zip(about.schema, known, strict=False):
        if (applied.number, applied.sha256) != (migration.number, migration.sha256):
            raise BackupProblem(
                f"its store has a migration {applied.name} that this release has not in this form: "
                "restore it with the release that made it."
            )


def _kept_name() -> str:
    return f"{data_files.KEPT}{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"


def _entries(data: Path) -> list[Path]:
    """Return what is in the data directory, but for what restores and file systems put there."""
    try:
        found = sorted(data.iterdir())
    except FileNotFoundError:
        return []
    beginnings = (data_files.WORKING, data_files.KEPT)
    return [p for p in found if p.name not in IGNORED and not p.name.startswith(beginnings)]


@contextmanager
def _working(data: Path) -> Iterator[Path]:
    """Make a directory in the data directory for as long as the block lasts."""
    made = not data.exists()
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=data_files.WORKING, dir=data) as directory:
            yield Path(directory)
    finally:
        if made and not any(data.iterdir()):
            data.rmdir()


def _owner(data: Path) -> Callable[[int], None]:
    """Return what gives an open file to the owner of the data directory, if root restores."""
    owner = data.stat()

    def own(descriptor: int) -> None:
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            os.fchown(descriptor, owner.st_uid, owner.st_gid)

    return own
