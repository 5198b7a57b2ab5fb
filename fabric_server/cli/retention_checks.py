"""The checks of ``fabric-server doctor`` that are about what the store keeps."""

from __future__ import annotations

import shutil
import time

from fabric_server.config import Config
from fabric_server.storage.retention import Report, read_report
from fabric_server.storage.store import SqlStore
from runtime.findings import DAY, Finding, ok
from runtime.output import duration, moment
from runtime.shown import one_line
from sql.sqlite import path_of

LATE_SECONDS = 3 * DAY
"""Nothing was deleted for so long, although servers have run."""
SQLITE_ROW = 450
"""Bytes of a request in SQLite, with its indexes, and room for its sums."""
MONTH = 30.5 * DAY


async def check_retention(settings: Config, store: SqlStore) -> list[Finding]:
    """Judge the last deletion, and whether the ledger will fit on the disk."""
    report = await read_report(store.database)
    return [_deletion(report), *await _room(settings, store, report)]


def _deletion(report: Report) -> Finding:
    state = report.state
    if state.problem:
        what = f"what is too old was not deleted: {one_line(state.problem)}"
        remedy = "when that is settled, 'fabric-server retention run' tries again at once"
        return Finding("retention", "FAIL", what, "retention_failed", remedy)
    now = time.time()
    last = state.watched_since + DAY if state.finished_at is None else state.finished_at
    if state.watched_since and now - max(last, state.watched_since + DAY) > LATE_SECONDS:
        what = f"nothing that is too old was deleted for {duration(now - last)}"
        remedy = "look into the server's log, or use 'fabric-server retention run'"
        return Finding("retention", "warn", what, "retention_late", remedy)
    size = f"the store has {report.size.bytes / 2**20:,.0f} MiB"
    if report.oldest_entry is None:
        return ok("retention", f"{size}, and no requests")
    return ok("retention", f"{size}, its oldest request is of {moment(report.oldest_entry)}")


async def _room(settings: Config, store: SqlStore, report: Report) -> list[Finding]:
    """Compare the ledger's size in the end, at the last month's pace, with the disk's room."""
    if not settings.store_url.startswith("sqlite:"):
        return []  # PostgreSQL's disk is not here
    path = path_of(settings.store_url)
    if path is None:
        return []
    now = time.time()
    since = max(now - MONTH, report.oldest_entry or now)
    if now - since < DAY:
        return []
    (total,) = await store.usage(since, now)
    months = settings.keep_ledger_months + 1 if settings.keep_ledger_months else 12
    needed = total.requests * SQLITE_ROW * months * MONTH / (now - since)
    room = shutil.disk_usage(path.parent).free + report.size.bytes
    if needed <= 0.8 * room:
        return []
    kept = f"{months} months" if settings.keep_ledger_months else "a year"
    what = (
        f"at the pace of the last {duration(now - since)}, {kept} of requests take"
        f" {needed / 2**30:,.1f} GiB, and the disk has {room / 2**30:,.1f}"
    )
    remedy = "set keep_ledger_months to less, or take a larger disk"
    return [Finding("retention", "warn", what, "store_outgrows_disk", remedy)]
