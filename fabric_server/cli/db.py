"""``fabric-server db``: migrate the store's schema, and show its state."""

from __future__ import annotations

import time

from fabric_server.cli import Json, run_on_store, store_command
from fabric_server.config import Config
from runtime.output import commands, moment, say, say_json, say_table
from sql import migrations
from sql.connect import migrate as apply
from sql.connect import open_database

app = commands("Migrate the store's schema, and show its state.")


@app.command()
@store_command
def migrate(settings: Config, json: Json = False) -> None:
    """Apply the migrations that are missing. The server does so when it starts, too.

    Several programs may do so at once; each migration is applied once, in a transaction.
    """

    async def work() -> list[str]:
        database = await open_database(settings.store_url, create=False)
        try:
            return await apply(database, time.time())
        finally:
            await database.close()

    applied = run_on_store(settings, work())
    if json:
        say_json({"applied": applied})
        return
    for name in applied:
        say(f"Applied {name}.")
    if not applied:
        say("The schema is up to date.")


@app.command()
@store_command
def status(settings: Config, json: Json = False) -> None:
    """Show which migrations are applied, and apply none."""

    async def work() -> list[migrations.Status]:
        database = await open_database(settings.store_url, create=False)
        try:
            known = migrations.find(migrations.directory())
            return await migrations.status(database, known)
        finally:
            await database.close()

    rows = run_on_store(settings, work())
    if json:
        say_json([{"name": row.name, "applied_at": row.applied_at} for row in rows])
        return
    say_table(
        ("migration", "applied"),
        [(row.name, "not yet" if not row.applied_at else moment(row.applied_at)) for row in rows],
    )
