"""Open a database by its URL, and bring its schema up to date."""

from __future__ import annotations

from runtime.errors import BackendError, NoStore, StoreError
from runtime.extras import MissingExtra, needed_by
from runtime.shown import without_password
from sql import migrations
from sql.database import Database
from sql.sqlite import SqliteDatabase, path_of

KINDS = "sqlite:///path/to/file.db or postgresql://user:password@host/database"


async def open_database(url: str, *, setting: str = "store", create: bool = True) -> Database:
    """Open the database at ``url``, its schema as it is.

    ``sqlite:///relative/path``, ``sqlite:////absolute/path``, or ``sqlite://`` for memory; what
    follows the third slash is the path as it is, with nothing escaped.  Or ``postgresql://`` with
    all that PostgreSQL's own programs take there (``?sslmode=verify-full&sslrootcert=…``).

    Without ``create``, a server has made its tables there before, or it is ``NoStore``.

    Raises ``StoreError``, ``Unreachable`` when nothing answers there, ``MissingExtra`` without
    PostgreSQL's client; the text names ``setting``.
    """
    scheme, mark, _ = url.partition("://")
    try:
        if mark and scheme == "sqlite":
            sqlite = SqliteDatabase(path_of(url), create=create)
            return sqlite if create else await _used(sqlite, url)
        if mark and scheme in ("postgresql", "postgres"):
            with needed_by("PostgreSQL"):
                from sql.postgres import PostgresDatabase

            postgres = await PostgresDatabase.open(url)
            return postgres if create else await _used(postgres, url)
    except ValueError as error:
        raise BackendError(f"{setting} = '{without_password(url)}': {error}") from error
    except (StoreError, MissingExtra) as error:
        raise type(error)(f"{setting}: {error}") from error
    raise BackendError(f"{setting} = '{without_password(url)}': this version knows only {KINDS}")


async def _used(database: Database, url: str) -> Database:
    """Return the database if it has a server's tables; close it and raise ``NoStore`` if not."""
    try:
        if await migrations.is_new(database):
            raise NoStore(f"{without_password(url)} has no tables of a server")
    except BaseException:
        await database.close()
        raise
    return database


async def migrate(database: Database, now: float) -> list[str]:
    """Bring the schema up to date; return the names of the migrations applied."""
    return await migrations.migrate(database, migrations.find(migrations.directory()), now)
