# ruff: noqa: S608 - only names of ours, and placeholders, are put into a text
"""The table of stored answers: responses and chat completions, by account, for all servers that
share the store."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from msgspec import Struct
from msgspec.structs import astuple

from sql.database import Database, Session, Value

OVERHEAD_BYTES = 4096
"""Bytes that each answer counts beyond its size, so that the number of rows is limited, too."""
_AT_ONCE = 100
Kind = Literal["response", "chat"]


class AnswerRow(Struct, frozen=True):
    """The columns of the table, in order."""

    account: str
    id: str
    kind: Kind
    size: int
    created_at: float
    expires_at: float
    model: str
    metadata: str
    """See ``metadata_text``; empty for responses."""
    input: bytes
    """JSON: the list of the items or messages that the engine got."""
    answer: bytes
    """JSON: the object as it is shown, without its metadata."""


class Page(NamedTuple):
    """The answers that a list is to have."""

    limit: int
    after: str = ""
    """Id of the last answer of the page before, which may be deleted by now."""
    newest_first: bool = False
    model: str | None = None
    metadata: Mapping[str, str] = {}
    """Pairs that an answer must have."""


class Listed(NamedTuple):
    """One answer of a list, without its texts."""

    id: str
    size: int
    """Bytes of the object as it is shown."""


class Shown(NamedTuple):
    """The columns of which an answer is shown."""

    id: str
    metadata: str
    answer: bytes


_ROW = ", ".join(AnswerRow.__struct_fields__)
_PLACES = ", ".join(f"${number}" for number, _ in enumerate(AnswerRow.__struct_fields__, 1))
_ONE = "FROM stored_answers WHERE account = $1 AND kind = $2 AND expires_at > $3 AND id = $4"


def metadata_text(pairs: Mapping[str, str]) -> str:
    """Return JSON in ASCII in which each pair has a line, so that SQL can look for a pair."""
    lines = ",".join(map(_line, pairs.items()))
    return f"{{{lines}\n}}" if lines else "{}"


def _line(pair: tuple[str, str]) -> str:
    """Return a pair as the text of all metadata with this pair has it, and of no others: a line
    feed is escaped within a string, and so is a quote."""
    return f"\n{json.dumps(pair[0])}:{json.dumps(pair[1])}"


class AnswerStore:
    """Every method raises ``StoreError`` when the database can't."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, row: AnswerRow, *, max_bytes: int) -> bool:
        """Store an answer; the account's oldest are deleted where all have over ``max_bytes``.

        Return False when it is larger than that by itself, or when its id is there already.
        """
        if row.size + OVERHEAD_BYTES > max_bytes:
            return False
        async with self._database.transaction(durable=True) as session:
            await _lock(session, row.account)
            added = await session.execute(
                f"INSERT INTO stored_answers ({_ROW}) VALUES ({_PLACES})"
                " ON CONFLICT (account, id) DO NOTHING",
                *astuple(row),
            )
            if added:
                await _make_room(session, row.account, row.id, max_bytes)
            return bool(added)

    async def size(self, account: str, kind: Kind, id: str, now: float) -> int | None:
        """Return the bytes of what ``find`` would return; None when there is nothing."""
        rows = await self._database.fetch(f"SELECT size {_ONE}", account, kind, now, id)
        return int(rows[0][0]) if rows else None

    async def find(self, account: str, kind: Kind, id: str, now: float) -> AnswerRow | None:
        """Return the account's answer of this kind and id, unless it has expired."""
        rows = await self._database.fetch(f"SELECT {_ROW} {_ONE}", account, kind, now, id)
        if not rows:
            return None
        *others, given, answer = rows[0]
        values = [*others, bytes(given), bytes(answer)]
        return AnswerRow(*values)

    async def list_ids(self, account: str, kind: Kind, page: Page, now: float) -> list[Listed]:
        """Return the answers of a page, in order of the requests' arrival."""
        args: list[Value] = [account, kind, now, page.limit]
        conditions = ""

        def also(condition: str, value: Value) -> None:
            nonlocal conditions
            args.append(value)
            conditions += f" AND {condition.replace('?', f'${len(args)}')}"

        if page.after:
            also("id < ?" if page.newest_first else "id > ?", page.after)
        if page.model is not None:
            also("model = ?", page.model)
        for pair in page.metadata.items():
            also("replace(metadata, ?, '') <> metadata", _line(pair))
        rows = await self._database.fetch(
            "SELECT id, length(answer) + length(metadata) FROM stored_answers"
            f" WHERE account = $1 AND kind = $2 AND expires_at > $3{conditions}"
            f" ORDER BY id {'DESC' if page.newest_first else 'ASC'} LIMIT $4",
            *args,
        )
        return [Listed(str(id), int(size)) for id, size in rows]

    async def show(
        self, account: str, kind: Kind, ids: Sequence[str], now: float
    ) -> Mapping[str, Shown]:
        """Return the account's answers with these ids, by id; those are missing that are gone."""
        if not ids:
            return {}
        places = ", ".join(f"${number}" for number in range(4, 4 + len(ids)))
        rows = await self._database.fetch(
            "SELECT id, metadata, answer FROM stored_answers"
            f" WHERE account = $1 AND kind = $2 AND expires_at > $3 AND id IN ({places})",
            account,
            kind,
            now,
            *ids,
        )
        return {id: Shown(id, metadata, bytes(answer)) for id, metadata, answer in rows}

    async def set_metadata(
        self, account: str, kind: Kind, id: str, metadata: str, now: float, *, max_bytes: int
    ) -> bool:
        """Change an answer's metadata, and make room for it as ``add`` does; False when there is no
        such answer."""
        async with self._database.transaction(durable=True) as session:
            await _lock(session, account)
            changed = await session.execute(
                "UPDATE stored_answers SET size = size - length(metadata) + $5, metadata = $6"
                " WHERE account = $1 AND kind = $2 AND expires_at > $3 AND id = $4",
                account,
                kind,
                now,
                id,
                len(metadata),
                metadata,
            )
            if changed:
                await _make_room(session, account, id, max_bytes)
            return bool(changed)

    async def delete(self, account: str, kind: Kind, id: str, now: float) -> bool:
        """Delete the account's answer of this kind and id; False when there is none."""
        async with self._database.transaction(durable=True) as session:
            return bool(await session.execute(f"DELETE {_ONE}", account, kind, now, id))


async def _lock(session: Session, account: str) -> None:
    """Let no other transaction change how much the account has stored."""
    await session.alone(f"answers of {account}")


async def _make_room(session: Session, account: str, new: str, max_bytes: int) -> None:
    """Delete the account's oldest answers, but not the ``new`` one, until the others fit."""
    rows = await session.fetch(
        "SELECT CAST(sum(size + $2) AS BIGINT) FROM stored_answers WHERE account = $1",
        account,
        OVERHEAD_BYTES,
    )
    surplus = int(rows[0][0]) - max_bytes
    while surplus > 0:
        oldest = await session.fetch(
            "SELECT id, size FROM stored_answers WHERE account = $1 AND id <> $2"
            " ORDER BY created_at, id LIMIT $3",
            account,
            new,
            _AT_ONCE,
        )
        if not oldest:  # the sum is not that of the rows: nothing is left to delete
            break
        for id, size in oldest:
            if surplus <= 0:
                break
            await session.execute(
                "DELETE FROM stored_answers WHERE account = $1 AND id = $2", account, id
            )
            surplus -= size + OVERHEAD_BYTES
