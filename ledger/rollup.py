# ruff: noqa: S608 - only column names of ours are put into a text
"""Usage by the hour: updated in the transaction that writes the ledger, and so always its sum."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from ledger.borders import Borders
from ledger.records import LedgerEntry
from sql.database import Many, Session

HOUR = 3600

SUMMED = ("prompt_tokens", "completion_tokens", "bytes_in", "bytes_out", "estimated")
_NAMED = ("account", "key_id", "node_id", "engine", "model", "path", "outcome")
_KEY = f"hour, {', '.join(_NAMED)}"
_ALL = f"{_KEY}, requests, {', '.join(SUMMED)}"

_ADDED = f"ON CONFLICT ({_KEY}) DO UPDATE SET " + ", ".join(
    f"{c} = usage_by_hour.{c} + excluded.{c}" for c in ("requests", *SUMMED)
)
_ADD = Many(
    f"WITH given ({_ALL}) AS (given) INSERT INTO usage_by_hour ({_ALL})"
    f" SELECT {_ALL} FROM given WHERE true {_ADDED}",
    ("BIGINT", *["TEXT"] * len(_NAMED), *["BIGINT"] * (1 + len(SUMMED))),
)

FROM_LEDGER = (
    "SELECT CAST(FLOOR(at) AS BIGINT) / 3600 * 3600 AS hour, account, key_id,"
    " COALESCE(node_id, '') AS node_id, COALESCE(engine, '') AS engine, model, path, outcome,"
    " 1 AS requests, COALESCE(prompt_tokens, 0) AS prompt_tokens,"
    " COALESCE(completion_tokens, 0) AS completion_tokens, bytes_in, bytes_out,"
    " CASE WHEN estimated THEN 1 ELSE 0 END AS estimated FROM ledger"
)
PARTS = (
    f"SELECT {_ALL} FROM usage_by_hour WHERE hour >= $1 AND hour < $2"
    f" UNION ALL {FROM_LEDGER} WHERE at >= $3 AND at < $4"
    f" UNION ALL {FROM_LEDGER} WHERE at >= $5 AND at < $6"
)
"""The usage of any period: its whole hours, and the ledger before and after them."""


def _move(account_only: bool) -> str:
    kept = ("account", "outcome") if account_only else _NAMED
    names = ", ".join(name if name in kept else "''" for name in _NAMED)
    sums = ", ".join(f"CAST(SUM({name}) AS BIGINT)" for name in ("requests", *SUMMED))
    return (
        f"INSERT INTO usage_by_hour ({_ALL}) SELECT CAST($1 AS BIGINT), {names}, {sums}"
        f" FROM usage_by_hour WHERE hour = $2 GROUP BY {', '.join(kept)} {_ADDED}"
    )


_MOVE, _MOVE_TO_ACCOUNT = _move(False), _move(True)

_MAX_SECONDS = 2**53
"""Beyond, a double can't represent every second; BIGINT can."""


def parts_of(
    since: float, until: float, borders: Borders
) -> tuple[int, int, float, float, float, float]:
    """Return the arguments of ``PARTS`` for ``since <= at < until``.

    Where entries are deleted, both begin with the sum that they are in.
    """
    since, until = borders.aligned(since), borders.aligned(until)
    earliest, latest = (min(max(at, -_MAX_SECONDS), _MAX_SECONDS) for at in (since, until))
    first, last = math.ceil(earliest / HOUR) * HOUR, math.floor(latest / HOUR) * HOUR
    if first >= last:  # no whole hour
        return 0, 0, since, until, 0.0, 0.0
    return first, last, since, float(first), float(last), until


async def add(session: Session, entries: Sequence[LedgerEntry], new: Collection[str]) -> None:
    """Add the entries whose ids are in ``new``, each id once."""
    left = set(new)
    sums: dict[tuple[int | str, ...], list[int]] = {}
    for entry in entries:
        if entry.request_id not in left:
            continue
        left.discard(entry.request_id)
        key = (
            math.floor(entry.at) // HOUR * HOUR,
            entry.account,
            entry.key_id,
            entry.node_id or "",
            entry.engine or "",
            entry.model,
            entry.path,
            entry.outcome,
        )
        sum_ = sums.get(key)
        if sum_ is None:
            sum_ = sums[key] = [0] * (1 + len(SUMMED))
        sum_[0] += 1
        sum_[1] += entry.prompt_tokens or 0
        sum_[2] += entry.completion_tokens or 0
        sum_[3] += entry.bytes_in
        sum_[4] += entry.bytes_out
        sum_[5] += entry.estimated
    # Sorted, so that two writers never deadlock.
    await session.many(_ADD, [(*key, *sum_) for key, sum_ in sorted(sums.items())])


async def move(session: Session, hour: int, target: int, *, account_only: bool) -> int:
    """Add the sums of an hour to those of another one; return the number of rows.

    With ``account_only``, only account and outcome are kept apart.
    """
    sql = _MOVE_TO_ACCOUNT if account_only else _MOVE
    await session.execute(sql, target, hour)
    return await session.execute("DELETE FROM usage_by_hour WHERE hour = $1", hour)
