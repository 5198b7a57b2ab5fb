"""Retention: what is too old is deleted or summed up, in small transactions, by one server."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

from fabric_server.storage.ended import EndedRows
from fabric_server.storage.retention_state import LEASE_SECONDS, RetentionRow, RetentionState
from ledger.archive import Archived, archive_month
from ledger.borders import Grain
from ledger.closing import EARLIEST, LedgerClosing, LedgerMonth
from ledger.months import month_of, shifted
from ledger.records import LedgerEntry
from ledger.usage_grains import UsageGrains
from runtime.errors import BackendError, StoreError
from runtime.outage import Outage
from sql.database import Database, Size

log = logging.getLogger("fabric.retention")

DAY = 86_400.0
LOOK_SECONDS = 300.0
RUN_SECONDS = 3600.0
"""Time between two runs."""
CALM_SECONDS = DAY
"""Servers must have looked for so long: after an outage or a change of the clock, nodes can come
back and the operator can correct the clock, before anything is deleted."""
LONGEST_PAUSE = 1.0
INVITATION_DAYS = 30.0
MAX_ROWS = 2_000
"""Rows of one transaction, so that no other one waits for long."""


class Policy(Struct, frozen=True, kw_only=True):
    """The times for which things are kept; 0 is for ever.  The current month is always kept."""

    ledger_months: int
    archive: Path | None
    """The directory where months of the ledger are archived before they are deleted."""
    hourly_months: int
    daily_months: int
    monthly_months: int
    node_days: float
    """For nodes that were not seen for so long."""
    ended_days: float
    """For revoked and expired keys, and for revoked nodes."""


class Task(NamedTuple):
    """Something that is done in small steps."""

    name: str
    step: Callable[[], Awaitable[int]]
    """Return how many rows were changed: 0 when all is done."""
    due: Callable[[], Awaitable[int]]
    """Return about how many rows are to be changed."""


class Retention:
    """Does what a policy demands at one time.  Raises ``StoreError`` when it can't be done."""

    def __init__(
        self,
        database: Database,
        policy: Policy,
        now: float,
        *,
        renew: Callable[[], Awaitable[None]] | None = None,
        max_rows: int = MAX_ROWS,
    ) -> None:
        """``renew`` is called often, to keep the lease."""
        self._closing = LedgerClosing(database)
        self._archive = policy.archive
        self._now = now
        self._renew = renew or _nothing
        self._max_rows = max_rows
        self._since = EARLIEST  # no entry is older
        self.tasks = self._tasks(database, policy)

    def _tasks(self, database: Database, policy: Policy) -> list[Task]:
        """List what is to be done, in its order: sums are final once the ledger is closed."""
        tasks: list[Task] = []
        now, rows = self._now, self._max_rows
        if policy.ledger_months:
            limit = shifted(month_of(now), -policy.ledger_months)
            tasks.append(
                Task(
                    "ledger",
                    partial(self._step_ledger, limit),
                    partial(self._closing.count, limit),
                )
            )
        grains = UsageGrains(database)
        kept: dict[Grain, int] = {
            "day": policy.hourly_months,
            "month": policy.daily_months,
            "total": policy.monthly_months,
        }
        for grain, months in kept.items():
            if months:
                limit = shifted(month_of(now), -months)
                step, count = grains.make_coarser, grains.count
                tasks.append(
                    Task(
                        f"usage by {grain}",
                        partial(step, grain, limit),
                        partial(count, grain, limit),
                    )
                )
        ended = EndedRows(database)
        found = [
            ("invitations", INVITATION_DAYS, ended.delete_invitations, ended.count_invitations),
            ("stored answers", 0.0, ended.delete_answers, ended.count_answers),
        ]
        if policy.ended_days:
            days = policy.ended_days
            found.append(("keys", days, ended.delete_keys, ended.count_keys))
            revoked = ended.delete_revoked_nodes, ended.count_revoked_nodes
            found.append(("revoked nodes", days, *revoked))
        if policy.node_days:
            found.append(("nodes", policy.node_days, ended.delete_nodes, ended.count_nodes))
        for name, days, delete, counted in found:
            before = now - days * DAY
            tasks.append(Task(name, partial(delete, before, rows), partial(counted, before)))
        return tasks

    async def due(self) -> dict[str, int]:
        """Return about how many rows are to be deleted or summed up, by task."""
        return {task.name: await task.due() for task in self.tasks}

    async def run(self) -> dict[str, int]:
        """Do all of it; return how many rows were deleted or summed up, by task.

        After each step others get as much time as it took.
        """
        done = dict.fromkeys((task.name for task in self.tasks), 0)
        for task in self.tasks:
            while True:
                await self._renew()
                began = time.monotonic()
                rows = await task.step()
                if not rows:
                    break
                done[task.name] += rows
                await asyncio.sleep(pause_after(time.monotonic() - began))
        return done

    async def _step_ledger(self, limit: int) -> int:
        await self._closing.close(limit)
        month = await self._closing.next_month(limit, self._since)
        if month is None:
            return 0
        if not await self._closing.is_checked(month):
            await self._check(month)
        deleted = await self._closing.delete(month, self._since, self._max_rows)
        self._since = max(deleted, default=self._since)
        if await self._closing.next_month(limit, self._since) != month:
            await self._closing.deleted(month, self._now)
        return len(deleted)

    async def _pages(self, month: int) -> AsyncIterator[Sequence[LedgerEntry]]:
        async for page in self._closing.pages(month):
            await self._renew()
            yield page

    async def _check(self, month: int) -> None:
        """Compare a month with its sums, and archive it if so set."""
        entries = 0
        async for count in self._closing.hours(month):
            await self._renew()
            entries += count
        archived = Archived("", entries, "")
        if self._archive is not None:
            archived = await archive_month(self._archive, month, self._pages(month))
        if archived.entries != entries:
            raise StoreError("the ledger was changed while a month was archived: it is kept")
        await self._closing.checked(
            LedgerMonth(month, entries, archived.name, archived.sha256, self._now)
        )


def pause_after(seconds: float) -> float:
    """Return how long to leave the database to others after a step that took so long.

    A step that reads a whole month holds nobody up, and the lease must not end after it.
    """
    return min(seconds, LONGEST_PAUSE)


async def _nothing() -> None:
    """Do nothing: there is no lease."""


class Lease:
    """The right to delete, which one server holds at a time."""

    def __init__(self, state: RetentionState, clock: Callable[[], Awaitable[float]]) -> None:
        """``clock`` reads the database's."""
        self._state = state
        self._clock = clock
        self._owner = f"server_{secrets.token_hex(8)}"
        self._renew_at = 0.0

    async def take(self) -> bool:
        self._renew_at = time.monotonic() + LEASE_SECONDS / 4
        return await self._state.claim(self._owner, await self._clock())

    async def renew(self) -> None:
        """Renew it if it is time.  Raises ``StoreError`` when another server has it by now."""
        if time.monotonic() >= self._renew_at and not await self.take():
            raise StoreError("another server has begun to delete what is old")

    async def give_back(self, removed: int, problem: str) -> None:
        await self._state.end(self._owner, await self._clock(), removed, problem)


async def run_once(database: Database, policy: Policy) -> dict[str, int] | None:
    """Do what is due now; return the rows by task, or None while another server does it.

    Raises ``BackendError``, which is stored as the problem, too.
    """
    lease = Lease(RetentionState(database), database.now)
    if not await lease.take():
        return None
    try:
        now = await database.now()
        done = await Retention(database, policy, now, renew=lease.renew).run()
    except BackendError as error:
        await lease.give_back(0, str(error))
        raise
    await lease.give_back(sum(done.values()), "")
    return done


class Report(Struct, frozen=True):
    """The facts about the store that operators want to know."""

    size: Size
    oldest_entry: float | None
    """When the oldest entry of the ledger arrived; Unix seconds, as all times."""
    state: RetentionRow


class RetentionKeeper:
    """Runs in the background: deletes hourly what is due, if no other server does so."""

    def __init__(self, database: Database, policy: Policy, *, outage: Outage | None = None) -> None:
        self._outage = outage or Outage("the store")
        self.failures = 0
        """Runs of this server that failed."""
        self.report: Report | None = None
        """The newest; None: the store was not read yet."""
        self._database = database
        self._policy = policy
        self._state = RetentionState(database)
        self._told: tuple[str, str, int] | None = None
        """The last failure in the log, and how many outages of the store were over then."""

    @property
    def figures(self) -> Mapping[str, float]:
        """The newest sizes and times, as numbers; NaN for what is not known."""
        report = self.report
        if report is None:
            return dict.fromkeys(("bytes", "oldest", "finished"), math.nan)
        oldest, finished = report.oldest_entry, report.state.finished_at
        return {
            "bytes": report.size.bytes,
            "oldest": math.nan if oldest is None else oldest,
            "finished": math.nan if finished is None else finished,
        }

    async def run(self) -> None:
        """Look every few minutes, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Do what is due; a failure is logged, and stored for all to see."""
        try:
            now = await self._database.now()
            state = await self._state.watch(now)
            if _is_due(state, now):
                await self._delete()
            self.report = await read_report(self._database)
        except BackendError as error:
            self._note("retention waits for the store", str(error))

    def _note(self, event: str, reason: str) -> None:
        """Log a failure, unless it is the last one again and no outage has ended since."""
        told = event, reason, self._outage.over
        if told != self._told:
            self._told = told
            self._outage.note(log, event, reason=reason)

    async def _delete(self) -> None:
        try:
            done = await run_once(self._database, self._policy)
        except BackendError as error:
            self.failures += 1
            self._note("old rows were not deleted", str(error))
            return
        self._told = None
        if done is not None and any(done.values()):
            rows = {name.replace(" ", "_"): count for name, count in done.items() if count}
            log.info("old rows were deleted or summed up", extra=rows)


async def read_report(database: Database) -> Report:
    oldest = await LedgerClosing(database).oldest()
    return Report(await database.size(), oldest, await RetentionState(database).read())


def _is_due(state: RetentionRow, now: float) -> bool:
    if now - state.watched_since < CALM_SECONDS:
        return False
    return state.finished_at is None or not 0 <= now - state.finished_at < RUN_SECONDS
