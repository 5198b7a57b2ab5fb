# ruff: noqa: S608 - only column names of ours are put into a text
"""Jobs and the lines of batches, as the store remembers them: queue, lease and result in one row.

A server claims a job for as long as its lease lasts, and renews that while the job runs.
``starts`` numbers the leases: who has lost one can neither renew it nor end the job, so that no
result is ever replaced, whatever becomes of servers, and a job that has one is never run again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import astuple

from fabric_server.storage.webhooks import WebhookRow, add_webhook
from sql.database import Database, Many, Row, Session, Value

JobState = Literal["queued", "running", "done", "failed", "cancelled"]
MAX_STARTS = 3
"""After so many servers have died of it, or with it, a job has failed."""
_MAX_NAMES = 4096


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

    def __repr__(self) -> str:  # without what is asked, or the webhook's secret
        return f"<JobRow {self.id} {self.state} starts={self.starts}>"

    @property
    def finished(self) -> bool:
        return self.finished_at is not None


class Lane(Struct, frozen=True):
    """Jobs that are claimed in turn with those of other lanes: an account's, or a batch's."""

    account: str
    batch: str


_COLUMNS = JobRow.__struct_fields__
_JOB = ", ".join(_COLUMNS)
_LIGHT = _JOB.replace(" body,", " substr(body, 1, 0),")
"""Without what was asked, which may be megabytes: for all but running it."""
_PLACES = ", ".join(f"${n}" for n in range(1, len(_COLUMNS) + 1))
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

    async def add(self, job: JobRow, *, most: int) -> JobRow | None:
        """The job as it is stored: an earlier one when there is one of this name, without its body.

        None: the account has ``most`` unfinished jobs already.
        """
        async with self._database.transaction(durable=True) as session:
            await session.alone(f"jobs of {job.account}")
            found = await _named(session, job.account, job.batch, job.name)
            if found is not None:
                return found
            rows = await session.fetch(
                "SELECT count(*) FROM jobs WHERE account = $1 AND batch = $2"
                " AND finished_at IS NULL",
                job.account,
                job.batch,
            )
            if rows[0][0] >= most:
                return None
            await session.execute(f"INSERT INTO jobs ({_JOB}) VALUES ({_PLACES})", *astuple(job))
            return job

    async def add_lines(self, lines: Sequence[JobRow]) -> None:
        """Those that are there already stay as they are."""
        async with self._database.transaction() as session:
            await session.many(_ADD, [astuple(line) for line in lines])

    async def named(self, account: str, name: str) -> JobRow | None:
        """Without its body, as all that are told of."""
        return await _named(self._database, account, "", name)

    # ── running them ──────────────────────────────────────────────────────────────────────────

    async def lanes(
        self, models: Collection[str], now: float, *, resting: Collection[str] = ()
    ) -> list[Lane]:
        """Where something waits to be run that asks for one of ``models``, and not by one of the
        ``resting`` keys."""
        fetch, names, keys = self._database.fetch, _padded(models), _padded(resting)
        rest = _places(2 + len(names), keys)
        jobs = await fetch(
            "SELECT DISTINCT account FROM jobs WHERE state = 'queued' AND batch = ''"
            f" AND not_before <= $1 AND model IN ({_places(2, names)}) AND key_id NOT IN ({rest})",
            now,
            *names,
            *keys,
        )
        batches = await fetch(
            "SELECT account, id FROM batches WHERE finished_at IS NULL AND state = 'in_progress'"
            " AND EXISTS (SELECT 1 FROM jobs WHERE jobs.account = batches.account"
            " AND jobs.batch = batches.id AND jobs.state = 'queued' AND not_before <= $1"
            f" AND model IN ({_places(2, names)})) AND key_id NOT IN ({rest})"
            " ORDER BY created_at, id",
            now,
            *names,
            *keys,
        )
        return [*(Lane(row[0], "") for row in jobs), *(Lane(row[0], row[1]) for row in batches)]

    async def claim(
        self,
        lane: Lane,
        owner: str,
        most: int,
        models: Collection[str],
        *,
        now: float,
        lease_until: float,
        resting: Collection[str] = (),
    ) -> list[JobRow]:
        """Up to ``most`` of a lane's next jobs that ``lanes`` has told of, which are nobody else's
        until ``lease_until``."""
        names, keys = _padded(models), _padded(resting)
        async with self._database.transaction(durable=True) as session:
            await session.alone("claim jobs")  # two at once would find the same and wait in turn
            rows = await session.fetch(
                "UPDATE jobs SET state = 'running', owner = $1, lease_until = $2, started_at = $3,"
                " starts = starts + 1 WHERE state = 'queued' AND id IN (SELECT id FROM jobs"
                " WHERE state = 'queued' AND account = $4 AND batch = $5 AND not_before <= $3"
                f" AND model IN ({_places(7, names)})"
                f" AND key_id NOT IN ({_places(7 + len(names), keys)})"
                f" ORDER BY priority, line, created_at, id LIMIT $6) RETURNING {_JOB}",
                owner,
                lease_until,
                now,
                lane.account,
                lane.batch,
                most,
                *names,
                *keys,
            )
            return sorted(map(_job, rows), key=lambda job: (job.priority, job.line, job.created_at))

    async def renew(
        self, owner: str, ids: Collection[str], lease_until: float
    ) -> dict[str, tuple[int, bool]]:
        """What this server still has of ``ids``: ``starts``, and whether it is to be cancelled.

        Others of its jobs, that it has lost track of while the store was away, run out.
        """
        held: dict[str, tuple[int, bool]] = {}
        waiting = list(ids)
        while waiting:
            names, waiting = _padded(waiting), waiting[_MAX_NAMES:]
            async with self._database.transaction() as session:
                rows = await session.fetch(
                    "UPDATE jobs SET lease_until = $1 WHERE state = 'running' AND owner = $2"
                    f" AND id IN ({_places(3, names)}) RETURNING id, starts, cancel",
                    lease_until,
                    owner,
                    *names,
                )
            held |= {row[0]: (int(row[1]), bool(row[2])) for row in rows}
        return held

    async def abandoned(self, now: float) -> list[JobRow]:
        """Jobs whose servers let their leases run out, those that are to fail for it.

        The others are in the queue again.
        """
        expired = "state = 'running' AND lease_until <= $1"
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
        """Queued jobs whose time is over; lines are their batch's business."""
        rows = await self._database.fetch(
            f"SELECT {_LIGHT} FROM jobs WHERE state = 'queued' AND batch = '' AND expires_at <= $1"
            " LIMIT 100",
            now,
        )
        return list(map(_job, rows))

    async def put_back(self, job: JobRow, not_before: float) -> bool:
        """It was not the job's fault that it did not run: this start does not count."""
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

    async def finish(
        self,
        job: JobRow,
        state: JobState,
        *,
        now: float,
        status: int,
        answer: bytes,
        request_id: str = "",
        webhook: WebhookRow | None = None,
    ) -> bool:
        """Its end, and what is to be told of it, both or neither.

        False when it is not this lease's any more: it has ended otherwise, or will.
        """
        async with self._database.transaction(durable=True) as session:
            ended = await session.execute(
                "UPDATE jobs SET state = $1, status = $2, answer = $3, finished_at = $4,"
                " request_id = $5, owner = '', cancel = FALSE, body = $9"
                " WHERE id = $6 AND finished_at IS NULL AND owner = $7 AND starts = $8",
                state,
                status,
                answer,
                now,
                request_id,
                job.id,
                job.owner,
                job.starts,
                b"",  # nobody asks it again
            )
            if not ended:
                return False
            if job.batch:
                column = "completed" if state == "done" else "failed"
                await session.execute(
                    f"UPDATE batches SET {column} = {column} + 1 WHERE id = $1", job.batch
                )
            if webhook is not None:
                await add_webhook(session, webhook)
            return True

    async def cancel(self, job: JobRow) -> None:
        """To whoever runs it: stop.  It is told when its lease is renewed."""
        async with self._database.transaction(durable=True) as session:
            await session.execute(
                "UPDATE jobs SET cancel = TRUE WHERE id = $1 AND state = 'running'", job.id
            )

    # ── what is told of them ──────────────────────────────────────────────────────────────────

    async def ahead(self, job: JobRow) -> int:
        """How many jobs of this model are in the queue before it, whoever's they are."""
        rows = await self._database.fetch(
            "SELECT count(*) FROM jobs WHERE state = 'queued' AND batch = '' AND model = $1"
            " AND (priority < $2 OR (priority = $2 AND created_at < $3))",
            job.model,
            job.priority,
            job.created_at,
        )
        return int(rows[0][0])

    async def places(self, account: str, *, most: int) -> dict[str, int]:
        """As ``ahead``, of an account's first ``most`` queued jobs, by their ids."""
        rows = await self._database.fetch(
            "SELECT id, place FROM (SELECT id, account, priority, created_at, rank() OVER"
            " (PARTITION BY model ORDER BY priority, created_at) AS place FROM jobs"
            " WHERE state = 'queued' AND batch = '') AS waiting WHERE account = $1"
            " ORDER BY priority, created_at, id LIMIT $2",
            account,
            most,
        )
        return {row[0]: int(row[1]) - 1 for row in rows}

    async def unfinished(self, account: str, *, most: int) -> list[JobRow]:
        """An account's own jobs, in the order in which they are run."""
        rows = await self._database.fetch(
            f"SELECT {_LIGHT} FROM jobs WHERE account = $1 AND batch = '' AND finished_at IS NULL"
            " ORDER BY priority, created_at, id LIMIT $2",
            account,
            most,
        )
        return list(map(_job, rows))

    async def queued(self) -> tuple[int, int]:
        """Jobs, and lines of batches, that wait to be run: everybody's."""
        rows = await self._database.fetch(
            "SELECT batch <> '', count(*) FROM jobs WHERE state = 'queued' GROUP BY 1"
        )
        counts = {bool(row[0]): int(row[1]) for row in rows}
        return counts.get(False, 0), counts.get(True, 0)

    async def totals(self) -> tuple[int, int]:
        """Jobs in the queue, and running: everybody's."""
        rows = await self._database.fetch(
            "SELECT state, count(*) FROM jobs WHERE batch = '' AND state IN ('queued', 'running')"
            " GROUP BY state"
        )
        counts = {row[0]: int(row[1]) for row in rows}
        return counts.get("queued", 0), counts.get("running", 0)

    # ── lines ─────────────────────────────────────────────────────────────────────────────────

    async def lines(self, batch: str, after: int, *, most: int) -> list[JobRow]:
        """In order, those behind line ``after``."""
        rows = await self._database.fetch(
            f"SELECT {_JOB} FROM jobs WHERE batch = $1 AND line > $2 ORDER BY line LIMIT $3",
            batch,
            after,
            most,
        )
        return list(map(_job, rows))

    async def answered(self, batch: str) -> int:
        """Bytes of all its lines' answers so far."""
        rows = await self._database.fetch(
            "SELECT CAST(COALESCE(sum(length(answer)), 0) AS BIGINT) FROM jobs WHERE batch = $1",
            batch,
        )
        return int(rows[0][0])

    async def break_off(self, batch: str, now: float, answer: bytes) -> int:
        """Lines that were not begun are not begun any more, those that run are to stop.

        Returns how many still run.
        """
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

    # ── forgetting ────────────────────────────────────────────────────────────────────────────

    async def forget(self, before: float, *, keep: int, size: int, most: int = 1000) -> int:
        """Jobs that ended before then, and all but each account's last ``keep``, and of these all
        but the last whose answers have ``size`` bytes together.

        At most so many at once, so that nobody waits for long.  Returns how many.
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
                most,
            )


def _padded(names: Collection[str]) -> list[str]:
    """To one of a few lengths: each makes a statement of its own, which databases remember."""
    some = list(names)[:_MAX_NAMES]
    count = 1 << max(0, len(some) - 1).bit_length()
    return some + (some[-1:] or [""]) * (count - len(some))


def _places(first: int, names: list[str]) -> str:
    return ", ".join(f"${first + n}" for n in range(len(names)))


async def _named(where: Database | Session, account: str, batch: str, name: str) -> JobRow | None:
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
