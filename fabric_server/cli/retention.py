"""``fabric-server retention``: show what the store keeps, and delete what is too old."""

from __future__ import annotations

import time
from typing import Annotated, Any

import msgspec
import typer

from fabric_server.cli import Json, with_store
from fabric_server.config import PREFIX, Config
from fabric_server.retention_policy import policy_of
from fabric_server.storage.retention import Report, Retention, read_report, run_once
from fabric_server.storage.store import SqlStore
from ledger.closing import LedgerClosing, LedgerMonth
from ledger.months import name_of
from runtime.flags import takes_settings
from runtime.output import Failure, commands, duration, moment, note, say, say_json, say_table

app = commands("Show what the store keeps, and delete what is too old.")

_SETTINGS = (
    *("data", "store", "keep_ledger_months", "ledger_archive", "keep_hourly_months"),
    *("keep_daily_months", "keep_monthly_months", "keep_nodes_days", "keep_ended_days"),
    "node_certificate_days",
)
_command = takes_settings(Config, PREFIX, only=_SETTINGS)


@app.command()
@_command
def show(settings: Config, json: Json = False) -> None:
    """Show the size of the store, its oldest request, the last deletion and the deleted months.

    A running server deletes hourly what is too old; several leave it to one of them.
    """

    async def read(store: SqlStore) -> tuple[Report, list[LedgerMonth]]:
        report = await read_report(store.database)
        return report, await LedgerClosing(store.database).months()

    report, months = with_store(settings, read)
    if json:
        say_json({**_described(report), "months": [msgspec.structs.asdict(one) for one in months]})
        return
    finished, oldest = report.state.finished_at, report.oldest_entry
    free = report.size.free
    rows = [
        ("size of the store", _bytes(report.size.bytes)),
        ("of this, free for new rows", "not known" if free is None else _bytes(free)),
        ("oldest request", "none" if oldest is None else moment(oldest)),
        (
            "last deletion",
            "never" if finished is None else f"{duration(time.time() - finished)} ago",
        ),
        ("rows deleted or summed up then", str(report.state.removed)),
        ("problem", report.state.problem or "-"),
    ]
    say_table(("store", ""), rows)
    if months:
        say_table(
            ("month", "requests", "deleted", "archive"),
            [
                (
                    name_of(one.month),
                    str(one.entries),
                    "not yet" if one.deleted_at is None else moment(one.deleted_at),
                    one.archive or "-",
                )
                for one in months
            ],
        )


@app.command()
@_command
def run(
    settings: Config,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what is too old; delete nothing.")
    ] = False,
    json: Json = False,
) -> None:
    """Delete what is too old, now. The server may run.

    Unlike the server, this does not wait for a day in which the clock was not set.
    """
    policy = policy_of(settings)

    async def work(store: SqlStore) -> dict[str, int] | None:
        if dry_run:
            now = await store.database.now()
            return await Retention(store.database, policy, now).due()
        return await run_once(store.database, policy)

    rows = with_store(settings, work)
    if rows is None:
        raise Failure("a server deletes what is too old at this moment: try again in two minutes.")
    if json:
        say_json({"dry_run": dry_run, "rows": rows})
        return
    say_table(("what", "rows"), [(name, str(count)) for name, count in rows.items()])
    if dry_run:
        note("Nothing was deleted. 'usage by …' are rows that are added to coarser sums.")
    else:
        say(f"{sum(rows.values())} rows were deleted or summed up.")


def _described(report: Report) -> dict[str, Any]:
    """Describe the store; times are Unix seconds."""
    return {
        "bytes": report.size.bytes,
        "free_bytes": report.size.free,
        "oldest_request_at": report.oldest_entry,
        "finished_at": report.state.finished_at,
        "removed": report.state.removed,
        "problem": report.state.problem or None,
    }


def _bytes(number: int) -> str:
    return f"{number / 2**20:,.1f} MiB"
