"""Open a database by its URL, and bring its schema up to date."""

from __future__ import annotations

from runtime.errors import BackendError, StoreError
from runtime.extras import MissingExtra, needed_by
from runtime.shown import without_password
from sql import migrations
from sql.database import Database
from sql.sqlite import SqliteDatabase, path_of

KINDS = "sqlite:///path/to/file.db or postgresql://user:password@host/database"


async def open_database(url: str, *, setting: str = "store") -> Database:
    """Open the database at ``url``, its schema as it is.

    ``sqlite:///relative/path``, ``sqlite:////absolute/path``, or ``sqlite://`` for memory; what
    follows the third slash is the path as it is, with nothing escaped.  Or ``postgresql://`` with
    all that PostgreSQL's own programs take there (``?sslmode=verify-full&sslrootcert=…``).

    Raises ``StoreError``, ``Unreachable`` when nothing answers there, ``MissingExtra`` without
    PostgreSQL's client; the text names ``setting``.
    """
    scheme, mark, _ = url.partition("://")
    try:
        if mark and scheme == "sqlite":
            return SqliteDatabase(path_of(url))
        if mark and scheme in ("postgresql", "postgres"):
            with needed_by("PostgreSQL"):
                from sql.postgres import PostgresDatabase

            return await PostgresDatabase.open(url)
    except ValueError as error:
        raise BackendError(f"{setting} = '{without_password(url)}': {error}") from error
    except (StoreError, MissingExtra) as error:
        raise type(error)(f"{setting}: {error}") from error
    raise BackendError(f"{setting} = '{without_password(url)}': this version knows only {KINDS}")


async def migrate(database: Database, now: float) -> list[str]:
    """Bring the schema up to date; return the names of the migrations applied."""
    return await migrations.migrate(database, migrations.find(migrations.directory()), now)
