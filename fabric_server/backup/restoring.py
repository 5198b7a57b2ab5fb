"""Restoring a backup into an empty data directory.

All is written beside its place first, and read to the end of the backup; then what was there is
moved away, and it is put there, by renames alone, which are taken back if one fails.
Whatever is wrong with a backup, nothing that was there before is touched.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path

from fabric_server.backup import data_files
from fabric_server.backup.age import DAMAGED
from fabric_server.backup.archive import DATA, About, ArchiveReader, Counts, Part
from fabric_server.backup.making import KEYS, NODES, SQLITE, kind_of
from fabric_server.backup.placing import (
    Moves,
    below,
    moving,
    own_path,
    owner_of,
    sync,
    why,
    working,
)
from fabric_server.backup.postgres_parts import read_tables
from fabric_server.backup.problem import BackupProblem
from fabric_server.storage.connect import open_cache, open_store
from fabric_server.storage.revocations import (
    merge_revocations,
    newest_revoked,
    revoke_known,
)
from fabric_server.storage.store import SqlStore
from runtime.errors import BackendError, NoStore, StoreError
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
    before_problem: str
    """Why the store that was there before can't say what was revoked; empty if it said so, or if
    there was none."""
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
    """Restore a backup.

    Raises ``BackupProblem`` and ``BackendError``, and OSError if all is as it was before.
    """
    _require_known(archive.about)
    with ExitStack() as directories:
        directory = directories.enter_context(working(place.data))
        restoring = _Restoring(archive, place, directory, directories)
        return await restoring.run()


class _Restoring:
    def __init__(
        self, archive: ArchiveReader, place: Place, directory: Path, directories: ExitStack
    ) -> None:
        self._archive = archive
        self._about = archive.about
        self._place = place
        self._directories = directories
        self._files = directory / "data"
        self._files.mkdir(mode=0o700)
        self._own = owner_of(place.data)
        own_path(self._files, self._own)
        self._wanted = place.with_store and self._about.store != "none"
        self._store_url = ""
        self._sqlite = directory / "fabric.sqlite"
        """The store until it is put in its place, on the same file system."""
        self._elsewhere: Path | None = None
        """Where to put the store, if that is not in the data directory."""
        self._before_problem = ""

    async def run(self) -> Restored:
        async with AsyncExitStack() as stack:
            await self._read(stack)
        try:
            counts, again, problem = self._archive.counts, 0, "memory"
            if self._store_url:
                sqlite = self._about.store == "sqlite"
                url = f"sqlite:///{self._sqlite.as_posix()}" if sqlite else self._store_url
                counts, again, problem = await self._finish_store(url)
            moved = self._put()
        except (OSError, BackupProblem) as error:
            if not self._store_url or self._about.store != "postgresql":
                raise
            reason = why(error) if isinstance(error, OSError) else str(error)
            raise BackupProblem(
                "the database has the store of the backup now, but the files could not be put in "
                f"{self._place.data} ({reason}): create another empty database and try again, or "
                "put the files there with --without-store."
            ) from error
        return Restored(
            about=self._about,
            counts=counts,
            store_url=self._store_url,
            revoked_again=again,
            cache_problem=problem,
            before_problem=self._before_problem,
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
            self._choose_path(url)
        return url

    def _choose_path(self, url: str) -> None:
        """Choose where SQLite's store is written, and where it is put."""
        path = path_of(url)
        if path is None:
            raise BackupProblem("'store' names a store in memory: set it to sqlite:///PATH.")
        if below(path, self._place.data) is not None:
            return
        target = Path(os.path.realpath(path.parent), path.name)
        if os.path.lexists(target) and not self._place.force:
            raise BackupProblem(
                f"there is a store in {path}: set 'store' to another path, or keep it beside "
                "what is restored, with --force."
            )
        # Beside its place, from where a rename is enough.
        beside = self._directories.enter_context(working(target.parent, self._own))
        self._sqlite, self._elsewhere = beside / "fabric.sqlite", target

    # ── the store ─────────────────────────────────────────────────────────────────────────────

    async def _finish_store(self, url: str) -> tuple[Counts, int, str]:
        """Bring the store up to date; revoke what is known to have been revoked since.

        The cache knows that, and the store that was there before.
        """
        if self._about.store == "sqlite":
            check_sqlite(self._sqlite, "the store in the backup")
        known = await self._revoked_before()
        store = await open_store(url)
        try:
            again, problem = len(await revoke_known(store.database, known)), "memory"
            file = self._files / "fabric.toml"
            cache_url = self._place.cache_url(file if file.exists() else None)
            if cache_url != "memory://":
                more, problem = await _merge(store, cache_url)
                again += more
            keys = await store.database.fetch(KEYS, time.time())
            nodes = await store.database.fetch(NODES)
            return Counts(keys[0][0], nodes[0][0]), again, problem
        finally:
            await store.close()

    async def _revoked_before(self) -> dict[str, float]:
        """Return what the store that is moved away knows as revoked."""
        if not self._place.force:
            return {}
        known: dict[str, float] = {}
        # PostgreSQL's was empty.
        urls = [self._store_url] if self._about.store == "sqlite" else []
        try:
            file = self._place.data / "fabric.toml"
            url = self._place.store_url(file if file.exists() else None)
            if url != self._store_url:
                urls.append(url)
        except BackupProblem as error:
            self._before_problem = str(error)
        for url in urls:
            try:
                known |= await _revoked_in(url)
            except BackendError as error:
                self._before_problem = str(error)
        return known

    # ── putting in place ──────────────────────────────────────────────────────────────────────

    def _put(self) -> list[Path]:
        """Move all to its place, the certificates last: they make it a server's data."""
        data, name, moved = self._place.data, _kept_name(), list[Path]()
        if self._store_url and self._about.store == "sqlite":
            own_path(self._sqlite, self._own)
            if self._elsewhere is None:
                self._add_sqlite()
        for path in self._files.rglob("*"):
            if path.is_dir():
                own_path(path, self._own)
        with moving() as moves:
            if old := _entries(data):
                kept = moves.make(data / name)
                own_path(kept, self._own)
                for path in old:
                    moves.move(path, kept / path.name)
                moved.append(kept)
            if self._elsewhere is not None:
                moved += self._put_sqlite(self._elsewhere, name, moves)
            for path in sorted(self._files.iterdir(), key=lambda one: one.name == "certs"):
                moves.move(path, data / path.name)
            sync(data)
        return moved

    def _add_sqlite(self) -> None:
        """Add the store to the files of the data directory."""
        path = path_of(self._store_url)
        inside = None if path is None else below(path, self._place.data)
        assert inside is not None, "the place of the store was chosen before"
        target = self._files / inside
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for end in data_files.BESIDE_SQLITE:  # those of a store that the server did not use
            Path(f"{target}{end}").unlink(missing_ok=True)
        self._sqlite.rename(target)

    def _put_sqlite(self, target: Path, name: str, moves: Moves) -> list[Path]:
        """Put the store elsewhere; return where the one is now that was there."""
        moved = []
        for end in data_files.BESIDE_SQLITE:
            if os.path.lexists(old := Path(f"{target}{end}")):
                moved.append(moves.move(old, Path(f"{target}.{name}{end}")))
        moves.move(self._sqlite, target)
        sync(target.parent)
        return moved


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


async def _revoked_in(url: str) -> dict[str, float]:
    """Return the newest revocations of a store; none if there is no store."""
    try:
        database = await open_database(url, create=False)
    except NoStore:
        return {}
    try:
        return await newest_revoked(database, 0.0)
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
