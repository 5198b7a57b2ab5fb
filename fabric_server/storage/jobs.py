# ruff: noqa: S608 - only column names of ours are put into a text
"""The table of jobs, lines of batches included: queue, lease and result are one row.

A server claims a job for as long as its lease lasts, and renews the lease while the job runs.
``starts`` numbers the leases: a server that has lost one can neither renew it nor end the job, so
that no result is ever replaced, whatever happens to servers, and a job that has one never runs
again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import astuple

from fabric_server.storage.leases import lease_has_ended
from fabric_server.storage.webhooks import WebhookRow, add_webhook
from sql.database import Database, Many, Row, Session, Value

JobState = Literal["queued", "running", "done", "failed", "cancelled"]
MAX_STARTS = 3
"""Leases of a job that may run out; after so many it has failed."""
_MAX_ARGS = 4096
"""Arguments of one statement for a collection."""


class JobRow(Struct, frozen=True, kw_only=True):
    """The columns of the table, in order."""

    id: str
    account: str
    key_id: str
    batch: str = ""
    line: int = 0
    name: str
    path: str
    model: str
    body: bytes
    digest: bytes
    asked: str = "{}"
    webhook: str = ""
    priority: int
    created_at: float
    not_before: float = 0.0
    expires_at: float
    state: JobState = "queued"
    cancel: bool = False
    owner: str = ""
    lease_until: float = 0.0
    starts: int = 0
    started_at: float | None = None
    finished_at: float | None = None
    request_id: str = ""
    status: int = 0
    answer: bytes = b""
    variant_quantization: str = ""
    variant_digest: str = ""

    def __repr__(self) -> str:  # without the request's body, or the webhook's secret
        return f"<JobRow {self.id} {self.state} starts={self.starts}>"

    @property
    def finished(self) -> bool:
        return self.finished_at is not None


class Lane(Struct, frozen=True):
    """The jobs of an account, or of a batch; lanes take turns in being claimed from."""

    account: str
    batch: str


class JobFilter(Struct, frozen=True):
    """The queued jobs that a server can run now."""

    models: Collection[str]
    resting_keys: Collection[str] = ()
    """Keys that have used up their rate limit: their jobs are left alone."""


_COLUMNS = JobRow.__struct_fields__
_JOB = ", ".join(_COLUMNS)
_LIGHT = _JOB.replace(" body,", " substr(body, 1, 0),")
"""Without the request's body, which may be megabytes and is needed only to run the job."""
_ARGS = ", ".join(f"${n}" for n in range(1, len(_COLUMNS) + 1))
_CANCEL = _COLUMNS.index("cancel")
_TYPES: dict[Any, str] = {"float": "DOUBLE PRECISION", "int": "BIGINT", "bool": "BOOLEAN",
                          "bytes": "BYTEA", "float | None": "DOUBLE PRECISION"}  # fmt: skip
_ADD = Many(
    f"WITH given ({_JOB}) AS (given) INSERT INTO jobs ({_JOB})"
    f" SELECT {_JOB} FROM given WHERE true ON CONFLICT DO NOTHING",
    tuple(_TYPES.get(JobRow.__annotations__[name], "TEXT") for name in _COLUMNS),
)


class JobStore:
    """Every method raises ``StoreError`` when the database can't.  ``now`` is Unix seconds."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, job: JobRow, *, max_unfinished: int) -> JobRow | None:
        """Add a job; return it, or the earlier one of this name, without its body.

        None: the account has ``max_unfinished`` unfinished jobs already.
        """
        async with self._database.transaction(durable=True) as session:
            await session.alone(f"jobs of {job.account}")
            found = await _find(session, job.account, job.batch, job.name)
            if found is not None:
                return found
            rows = await session.fetch(
                "SELECT count(*) FROM jobs WHERE account = $1 AND batch = $2"
                " AND finished_at IS NULL",
                job.account,
                job.batch,
            )
            if rows[0][0] >= max_unfinished:
                return None
            await session.execute(f"INSERT INTO jobs ({_JOB}) VALUES ({_ARGS})", *astuple(job))
            return job

    async def add_lines(self, lines: Sequence[JobRow]) -> None:
        """Add lines of a batch; those that exist stay as they are."""
        async with self._database.transaction() as session:
            await session.many(_ADD, [astuple(line) for line in lines])

    async def find(self, account: str, name: str) -> JobRow | None:
        """Return a job by its name, without its body."""
        return await _find(self._database, account, "", name)

    # ── running them ──────────────────────────────────────────────────────────────────────────────

    async def lanes(self, jobs: JobFilter, now: float) -> list[Lane]:
        """Return the lanes in which such jobs are queued."""
        fetch, names, keys = self._database.fetch, _padded(jobs.models), _padded(jobs.resting_keys)
        rest = _args(2 + len(names), keys)
        accounts = await fetch(
            "SELECT DISTINCT account FROM jobs WHERE state = 'queued' AND batch = ''"
            f" AND not_before <= $1 AND model IN ({_args(2, names)}) AND key_id NOT IN ({rest})",
            now,
            *names,
            *keys,
        )
        batches = await fetch(
            "SELECT account, id FROM batches WHERE finished_at IS NULL AND state = 'in_progress'"
            " AND EXISTS (SELECT 1 FROM jobs WHERE jobs.account = batches.account"
            " AND jobs.batch = batches.id AND jobs.state = 'queued' AND not_before <= $1"
            f" AND model IN ({_args(2, names)})) AND key_id NOT IN ({rest})"
            " ORDER BY created_at, id",
            now,
            *names,
            *keys,
        )
        return [*(Lane(row[0], "") for row in accounts), *(Lane(row[0], row[1]) for row in batches)]

    async def claim(
        self,
        lane: Lane,
        owner: str,
        limit: int,
        jobs: JobFilter,
        *,
        now: float,
        lease_until: float,
    ) -> list[JobRow]:
        """Lease up to ``limit`` of a lane's next such jobs to ``owner`` until ``lease_until``."""
        names, keys = _padded(jobs.models), _padded(jobs.resting_keys)
        async with self._database.transaction(durable=True) as session:
            # Two at once would find the same jobs, and wait for each other's rows.
            await session.alone("claim jobs")
            rows = await session.fetch(
                "UPDATE jobs SET state = 'running', owner = $1, lease_until = $2, started_at = $3,"
                " starts = starts + 1 WHERE state = 'queued' AND id IN (SELECT id FROM jobs"
                " WHERE state = 'queued' AND account = $4 AND batch = $5 AND not_before <= $3"
                f" AND model IN ({_args(7, names)})"
                f" AND key_id NOT IN ({_args(7 + len(names), keys)})"
                f" ORDER BY priority, line, created_at, id LIMIT $6) RETURNING {_JOB}",
                owner,
                lease_until,
                now,
                lane.account,
                lane.batch,
                limit,
                *names,
                *keys,
            )
            return sorted(map(_job, rows), key=lambda job: (job.priority, job.line, job.created_at))

    async def renew(
        self, owner: str, ids: Collection[str], lease_until: float
    ) -> dict[str, tuple[int, bool]]:
        """Renew leases; return those still held: ``starts``, and whether to cancel the job.

        Leases of other jobs of ``owner``, of which it lost track while the store was away, run out.
        """
        held: dict[str, tuple[int, bool]] = {}
        remaining = list(ids)
        while remaining:
            names, remaining = _padded(remaining), remaining[_MAX_ARGS:]
            async with self._database.transaction() as session:
                rows = await session.fetch(
                    "UPDATE jobs SET lease_until = $1 WHERE state = 'running' AND owner = $2"
                    f" AND id IN ({_args(3, names)}) RETURNING id, starts, cancel",
                    lease_until,
                    owner,
                    *names,
                )
            held |= {row[0]: (int(row[1]), bool(row[2])) for row in rows}
        return held

    async def now(self) -> float:
        """Return the time by the store's clock, which is the one of leases."""
        return await self._database.now()

    async def requeue_expired(self, now: float) -> list[JobRow]:
        """Queue again jobs whose leases have run out; return those that must end instead.

        They were to be cancelled, or have had ``MAX_STARTS`` leases.  Leases that end later than
        any lease can were made while a clock was ahead, and count as run out.
        """
        expired = f"state = 'running' AND {lease_has_ended('$1')}"
        if not await self._database.fetch(f"SELECT 1 FROM jobs WHERE {expired} LIMIT 1", now):
            return []
        async with self._database.transaction(durable=True) as session:
            await session.alone("claim jobs")
            await session.execute(
                "UPDATE jobs SET state = 'queued', owner = '', lease_until = 0"
                f" WHERE {expired} AND starts < $2 AND NOT cancel",
                now,
                MAX_STARTS,
            )
            rows = await session.fetch(f"SELECT {_LIGHT} FROM jobs WHERE {expired} LIMIT 100", now)
            return list(map(_job, rows))

    async def overdue(self, now: float) -> list[JobRow]:
        """Return queued jobs that have expired; lines expire with their batch."""
        rows = await self._database.fetch(
            f"SELECT {_LIGHT} FROM jobs WHERE state = 'queued' AND batch = '' AND expires_at <= $1"
            " LIMIT 100",
            now,
        )
        return list(map(_job, rows))

    async def requeue(self, job: JobRow, not_before: float) -> bool:
        """Queue a leased job again, without counting this start: the job was not the cause."""
        async with self._database.transaction() as session:
            return bool(
                await session.execute(
                    "UPDATE jobs SET state = 'queued', owner = '', lease_until = 0,"
                    " not_before = $1, starts = starts - 1"
                    " WHERE id = $2 AND state = 'running' AND owner = $3 AND starts = $4",
                    not_before,
                    job.id,
                    job.owner,
                    job.starts,
                )
            )

    async def finish(self, ended: JobRow, webhook: WebhookRow | None = None) -> bool:
        """Store the end of a job and add its webhook, both or neither.

        ``ended`` is the claimed row with its new ``state``, ``status``, ``answer``, ``finished_at``
        and ``request_id``.  False when its lease has been lost: it has ended otherwise, or will.
        """
        async with self._database.transaction(durable=True) as session:
            held = await session.execute(
                "UPDATE jobs SET state = $1, status = $2, answer = $3, finished_at = $4,"
                " request_id = $5, owner = '', cancel = FALSE, body = $9"
                " WHERE id = $6 AND finished_at IS NULL AND owner = $7 AND starts = $8",
                ended.state,
                ended.status,
                ended.answer,
                ended.finished_at,
                ended.request_id,
                ended.id,
                ended.owner,
                ended.starts,
                b"",  # the body is not needed again
            )
            if not held:
                return False
            if ended.batch:
                column = "completed" if ended.state == "done" else "failed"
                await session.execute(
                    f"UPDATE batches SET {column} = {column} + 1 WHERE id = $1", ended.batch
                )
            if webhook is not None:
                await add_webhook(session, webhook)
            return True

    async def cancel(self, job: JobRow) -> None:
        """Ask the server that runs it to stop, which learns of it when it renews the lease."""
        async with self._database.transaction(durable=True) as session:
            await session.execute(
                "UPDATE jobs SET cancel = TRUE WHERE id = $1 AND state = 'running'", job.id
            )

    # ── reading them ──────────────────────────────────────────────────────────────────────────────

    async def queue_position(self, job: JobRow) -> int:
        """Return how many jobs of this model, of all accounts, are queued before it."""
        rows = await self._database.fetch(
            "SELECT count(*) FROM jobs WHERE state = 'queued' AND batch = '' AND model = $1"
            " AND (priority < $2 OR (priority = $2 AND created_at < $3))",
            job.model,
            job.priority,
            job.created_at,
        )
        return int(rows[0][0])

    async def queue_positions(self, account: str, *, limit: int) -> dict[str, int]:
        """Return the positions of an account's first ``limit`` queued jobs, by their ids."""
        rows = await self._database.fetch(
            "SELECT id, place FROM (SELECT id, account, priority, created_at, rank() OVER"
            " (PARTITION BY model ORDER BY priority, created_at) AS place FROM jobs"
            " WHERE state = 'queued' AND batch = '') AS waiting WHERE account = $1"
            " ORDER BY priority, created_at, id LIMIT $2",
            account,
            limit,
        )
        return {row[0]: int(row[1]) - 1 for row in rows}

    async def unfinished(self, account: str, *, limit: int) -> list[JobRow]:
        """Return an account's jobs, without lines, in the order in which they are run."""
        rows = await self._database.fetch(
            f"SELECT {_LIGHT} FROM jobs WHERE account = $1 AND batch = '' AND finished_at IS NULL"
            " ORDER BY priority, created_at, id LIMIT $2",
            account,
            limit,
        )
        return list(map(_job, rows))

    async def count_queued(self) -> tuple[int, int]:
        """Return the numbers of queued jobs and of queued lines, of all accounts."""
        rows = await self._database.fetch(
            "SELECT batch <> '', count(*) FROM jobs WHERE state = 'queued' GROUP BY 1"
        )
        counts = {bool(row[0]): int(row[1]) for row in rows}
        return counts.get(False, 0), counts.get(True, 0)

    async def count(self) -> tuple[int, int]:
        """Return the numbers of queued and of running jobs, without lines, of all accounts."""
        rows = await self._database.fetch(
            "SELECT state, count(*) FROM jobs WHERE batch = '' AND state IN ('queued', 'running')"
            " GROUP BY state"
        )
        counts = {row[0]: int(row[1]) for row in rows}
        return counts.get("queued", 0), counts.get("running", 0)

    # ── lines of batches ──────────────────────────────────────────────────────────────────────────

    async def lines(self, batch: str, after: int, *, limit: int) -> list[JobRow]:
        """Return the lines behind line ``after``, in order."""
        rows = await self._database.fetch(
            f"SELECT {_JOB} FROM jobs WHERE batch = $1 AND line > $2 ORDER BY line LIMIT $3",
            batch,
            after,
            limit,
        )
        return list(map(_job, rows))

    async def result_bytes(self, batch: str) -> int:
        """Return the bytes of all its lines' results so far."""
        rows = await self._database.fetch(
            "SELECT CAST(COALESCE(sum(length(answer)), 0) AS BIGINT) FROM jobs WHERE batch = $1",
            batch,
        )
        return int(rows[0][0])

    async def cancel_lines(self, batch: str, now: float, answer: bytes) -> int:
        """End queued lines with that answer, ask running ones to stop; return how many run."""
        async with self._database.transaction(durable=True) as session:
            dropped = await session.execute(
                "UPDATE jobs SET state = 'cancelled', finished_at = $1, answer = $2"
                " WHERE batch = $3 AND state = 'queued'",
                now,
                answer,
                batch,
            )
            await session.execute(
                "UPDATE batches SET failed = failed + $1 WHERE id = $2", dropped, batch
            )
            return await session.execute(
                "UPDATE jobs SET cancel = TRUE WHERE batch = $1 AND state = 'running'", batch
            )

    # ── deleting ──────────────────────────────────────────────────────────────────────────────────

    async def delete_old(self, before: float, *, keep: int, size: int, limit: int = 1000) -> int:
        """Delete ended jobs; return how many.

        Deleted are those that ended before that time, all but each account's last ``keep``, and of
        these all but the last whose results have ``size`` bytes together.  At most ``limit`` at
        once, so that no other transaction waits for long.
        """
        async with self._database.transaction() as session:
            return await session.execute(
                "DELETE FROM jobs WHERE id IN (SELECT id FROM (SELECT id, finished_at,"
                " row_number() OVER last AS place, sum(length(answer)) OVER last AS bytes"
                " FROM jobs WHERE batch = '' AND finished_at IS NOT NULL"
                " WINDOW last AS (PARTITION BY account ORDER BY finished_at DESC, id)) AS ended"
                " WHERE finished_at < $1 OR place > $2 OR bytes > $3 LIMIT $4)",
                before,
                keep,
                size,
                limit,
            )


def _padded(names: Collection[str]) -> list[str]:
    """Pad to one of a few lengths: each makes its own statement, and databases cache statements."""
    some = list(names)[:_MAX_ARGS]
    count = 1 << max(0, len(some) - 1).bit_length()
    return some + (some[-1:] or [""]) * (count - len(some))


def _args(first: int, names: list[str]) -> str:
    return ", ".join(f"${first + n}" for n in range(len(names)))


async def _find(where: Database | Session, account: str, batch: str, name: str) -> JobRow | None:
    rows = await where.fetch(
        f"SELECT {_LIGHT} FROM jobs WHERE account = $1 AND batch = $2 AND name = $3",
        account,
        batch,
        name,
    )
    return _job(rows[0]) if rows else None


def _job(row: Row) -> JobRow:
    values: list[Value] = list(row)
    values[_CANCEL] = bool(values[_CANCEL])  # SQLite has no truth values of its own
    return JobRow(**dict(zip(_COLUMNS, values, strict=True)))  # type: ignore[arg-type]
