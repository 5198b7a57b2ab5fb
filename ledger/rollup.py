# ruff: noqa: S608 - only column names of ours are put into a text
"""Usage by the hour: updated in the transaction that writes the ledger, and so always its sum."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from ledger.records import LedgerEntry
from sql.database import Many, Session

HOUR = 3600

SUMMED = ("prompt_tokens", "completion_tokens", "bytes_in", "bytes_out", "estimated")
_NAMED = ("account", "key_id", "node_id", "engine", "model", "path", "outcome")
_KEY = f"hour, {', '.join(_NAMED)}"
_ALL = f"{_KEY}, requests, {', '.join(SUMMED)}"

_ADD = Many(
    f"WITH given ({_ALL}) AS (given) INSERT INTO usage_by_hour ({_ALL})"
    f" SELECT {_ALL} FROM given WHERE true ON CONFLICT ({_KEY}) DO UPDATE SET "
    + ", ".join(f"{c} = usage_by_hour.{c} + excluded.{c}" for c in ("requests", *SUMMED)),
    ("BIGINT", *["TEXT"] * len(_NAMED), *["BIGINT"] * (1 + len(SUMMED))),
)

_FROM_LEDGER = (
    "SELECT CAST(FLOOR(at) AS BIGINT) / 3600 * 3600 AS hour, account, key_id,"
    " COALESCE(node_id, '') AS node_id, COALESCE(engine, '') AS engine, model, path, outcome,"
    " 1 AS requests, COALESCE(prompt_tokens, 0) AS prompt_tokens,"
    " COALESCE(completion_tokens, 0) AS completion_tokens, bytes_in, bytes_out,"
    " CASE WHEN estimated THEN 1 ELSE 0 END AS estimated FROM ledger"
)
PARTS = (
    f"SELECT {_ALL} FROM usage_by_hour WHERE hour >= $1 AND hour < $2"
    f" UNION ALL {_FROM_LEDGER} WHERE at >= $3 AND at < $4"
    f" UNION ALL {_FROM_LEDGER} WHERE at >= $5 AND at < $6"
)
"""The usage of any period: its whole hours, and the ledger before and after them."""

_MAX_SECONDS = 2**53
"""Beyond, a double can't represent every second; BIGINT can."""


def parts_of(since: float, until: float) -> tuple[int, int, float, float, float, float]:
    """Return the arguments of ``PARTS`` for ``since <= at < until``."""
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
