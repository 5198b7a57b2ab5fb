# ruff: noqa: S608 - only column names of ours are put into a text
"""The table of batches; their lines are in the table of jobs."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import astuple

from fabric_server.storage.leases import lease_has_ended
from fabric_server.storage.webhooks import WebhookRow, add_webhook
from sql.database import Database, Row


class BatchRow(Struct, frozen=True, kw_only=True):
    """The columns of the table, in order."""

    id: str
    account: str
    key_id: str
    endpoint: str
    input_file: str
    output_file: str = ""
    error_file: str = ""
    metadata: str = "null"
    webhook: str = ""
    state: str = "validating"
    """One of OpenAI's: validating, failed, in_progress, finalizing, completed, expired, cancelling,
    cancelled."""
    errors: str = "[]"
    total: int = 0
    completed: int = 0
    failed: int = 0
    created_at: float
    expires_at: float
    in_progress_at: float | None = None
    cancelling_at: float | None = None
    finalizing_at: float | None = None
    finished_at: float | None = None
    owner: str = ""
    lease_until: float = 0.0
    variant_quantization: str = ""
    variant_digest: str = ""
    usage: str = "null"
    """The tokens of its answers, as JSON; null until it has ended."""
    output_seconds: int = 0
    """Seconds for which its output files are kept; 0: as long as other files."""

    def __repr__(self) -> str:  # without the webhook's secret
        return f"<BatchRow {self.id} {self.state} {self.completed}+{self.failed}/{self.total}>"


_COLUMNS = BatchRow.__struct_fields__
_BATCH = ", ".join(_COLUMNS)
_ARGS = ", ".join(f"${n}" for n in range(1, len(_COLUMNS) + 1))


class BatchStore:
    """Every method raises ``StoreError`` when the database can't.  ``now`` is Unix seconds."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, batch: BatchRow, *, max_unfinished: int) -> bool:
        """Add a batch; False if the account has ``max_unfinished`` unfinished ones already."""
        async with self._database.transaction(durable=True) as session:
            await session.alone(f"batches of {batch.account}")
            rows = await session.fetch(
                "SELECT count(*) FROM batches WHERE account = $1 AND finished_at IS NULL",
                batch.account,
            )
            if rows[0][0] >= max_unfinished:
                return False
            await session.execute(
                f"INSERT INTO batches ({_BATCH}) VALUES ({_ARGS})", *astuple(batch)
            )
            return True

    async def batch(self, account: str, id: str) -> BatchRow | None:
        rows = await self._database.fetch(
            f"SELECT {_BATCH} FROM batches WHERE account = $1 AND id = $2", account, id
        )
        return _batch(rows[0]) if rows else None

    async def batches(self, account: str, *, after: BatchRow | None, limit: int) -> list[BatchRow]:
        """Return an account's batches behind ``after``, newest first."""
        fetch = self._database.fetch
        if after is None:
            rows = await fetch(
                f"SELECT {_BATCH} FROM batches WHERE account = $1"
                " ORDER BY created_at DESC, id DESC LIMIT $2",
                account,
                limit,
            )
        else:
            rows = await fetch(
                f"SELECT {_BATCH} FROM batches WHERE account = $1 AND (created_at, id) < ($2, $3)"
                " ORDER BY created_at DESC, id DESC LIMIT $4",
                account,
                after.created_at,
                after.id,
                limit,
            )
        return list(map(_batch, rows))

    async def open(self) -> Sequence[BatchRow]:
        """Return all that are not finished, the oldest first."""
        rows = await self._database.fetch(
            f"SELECT {_BATCH} FROM batches WHERE finished_at IS NULL ORDER BY created_at, id"
        )
        return list(map(_batch, rows))

    async def claim(
        self, id: str, owner: str, *, now: float, lease_until: float
    ) -> BatchRow | None:
        """Lease the batch for work on itself until ``lease_until``; None: another server has it."""
        async with self._database.transaction() as session:
            rows = await session.fetch(
                "UPDATE batches SET owner = $1, lease_until = $2 WHERE id = $3"
                f" AND finished_at IS NULL AND (owner = $1 OR {lease_has_ended('$4')})"
                f" RETURNING {_BATCH}",
                owner,
                lease_until,
                id,
                now,
            )
            return _batch(rows[0]) if rows else None

    async def release(self, id: str, owner: str) -> None:
        async with self._database.transaction() as session:
            await session.execute(
                "UPDATE batches SET owner = '', lease_until = 0 WHERE id = $1 AND owner = $2",
                id,
                owner,
            )

    async def begin(self, id: str, owner: str, total: int, now: float) -> None:
        """Mark a validated batch as in progress, unless it was cancelled meanwhile."""
        async with self._database.transaction(durable=True) as session:
            await session.execute(
                "UPDATE batches SET total = $1, in_progress_at = $2, state = CASE state"
                " WHEN 'validating' THEN 'in_progress' ELSE state END"
                " WHERE id = $3 AND owner = $4",
                total,
                now,
                id,
                owner,
            )

    async def cancel(self, account: str, id: str, now: float) -> BatchRow | None:
        """Ask for cancellation and return the batch; one that has ended stays as it is."""
        async with self._database.transaction(durable=True) as session:
            await session.execute(
                "UPDATE batches SET state = 'cancelling', cancelling_at = $1 WHERE account = $2"
                " AND id = $3 AND state IN ('validating', 'in_progress')",
                now,
                account,
                id,
            )
        return await self.batch(account, id)

    async def finalize(self, id: str, owner: str, now: float) -> None:
        """Mark the batch as finalizing: all lines have ended, and its files are being written."""
        async with self._database.transaction() as session:
            await session.execute(
                "UPDATE batches SET finalizing_at = $1, state = CASE state"
                " WHEN 'in_progress' THEN 'finalizing' ELSE state END"
                " WHERE id = $2 AND owner = $3 AND finalizing_at IS NULL",
                now,
                id,
                owner,
            )

    async def finish(self, ended: BatchRow, webhook: WebhookRow | None = None) -> bool:
        """Store the end of a batch, add its webhook and delete its lines, all or nothing.

        ``ended`` is the claimed row with its new ``state``, ``finished_at``, ``output_file``,
        ``error_file``, ``errors`` and ``usage``.  False when another server has the batch.
        """
        async with self._database.transaction(durable=True) as session:
            held = await session.execute(
                "UPDATE batches SET state = $1, finished_at = $2, output_file = $3,"
                " error_file = $4, errors = $5, usage = $6, owner = '', lease_until = 0"
                " WHERE id = $7 AND owner = $8 AND finished_at IS NULL",
                ended.state,
                ended.finished_at,
                ended.output_file,
                ended.error_file,
                ended.errors,
                ended.usage,
                ended.id,
                ended.owner,
            )
            if not held:
                return False
            await session.execute("DELETE FROM jobs WHERE batch = $1", ended.id)
            if webhook is not None:
                await add_webhook(session, webhook)
            return True

    async def delete_old(self, before: float, *, limit: int = 1000) -> None:
        """Delete some batches that ended before that time."""
        async with self._database.transaction() as session:
            await session.execute(
                "DELETE FROM batches WHERE id IN"
                " (SELECT id FROM batches WHERE finished_at < $1 LIMIT $2)",
                before,
                limit,
            )


def _batch(row: Row) -> BatchRow:
    return BatchRow(**dict(zip(_COLUMNS, row, strict=True)))
