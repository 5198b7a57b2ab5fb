# ruff: noqa: S608 - only column names of ours are put into a text
"""The tables of accounts and keys."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from fabric_server.storage.revision import next_revision
from fabric_server.storage.rows import AccountRow, KeyRow
from sql.database import Database, Row, Session

# In the order of AccountRow and of KeyRow.
_ACCOUNT = "name, note, created_at, enabled"
_KEY = (
    "id, account, name, prefix, hash, management, created_at, expires_at, revoked_at, models,"
    " enabled, requests_per_minute, tokens_per_minute, failover, reasoning,"
    " scopes, priority, requests_at_once"
)
# A server of the release before makes keys whose account has no row.
_KEYS = (
    f"SELECT {', '.join(f'keys.{column}' for column in _KEY.split(', '))},"
    " COALESCE(accounts.enabled, TRUE)"
    " FROM keys LEFT JOIN accounts ON accounts.name = keys.account"
)


class AmbiguousKey(Exception):
    """Several keys have this prefix; ``str()`` names them."""


class KeyStore:
    """Accounts and their keys.  Every method raises ``StoreError`` when the database can't."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # ── accounts ──────────────────────────────────────────────────────────────────────────────

    async def create_account(self, account: AccountRow) -> bool:
        """Create an account; False when there is one of this name, which stays as it is."""
        async with self._database.transaction(durable=True) as session:
            return await _add_account(session, account, await next_revision(session))

    async def account(self, name: str) -> AccountRow | None:
        rows = await self._database.fetch(f"SELECT {_ACCOUNT} FROM accounts WHERE name = $1", name)
        return _account(rows[0]) if rows else None

    async def accounts(self) -> list[AccountRow]:
        """Return all of them, oldest first."""
        rows = await self._database.fetch(
            f"SELECT {_ACCOUNT} FROM accounts ORDER BY created_at, name"
        )
        return [_account(row) for row in rows]

    async def set_account_enabled(self, name: str, enabled: bool) -> AccountRow | None:
        """Enable or disable an account; return it, or None when there is none.

        While it is disabled none of its keys works; each keeps its own ``enabled``.
        """
        async with self._database.transaction(durable=True) as session:
            # First, because it locks: no key of this account is made until we are done.
            revision = await next_revision(session)
            rows = await session.fetch(
                "UPDATE accounts SET enabled = $1, revision = $2 WHERE name = $3"
                f" RETURNING {_ACCOUNT}",
                enabled,
                revision,
                name,
            )
            await session.execute(
                "UPDATE keys SET revision = $1 WHERE account = $2", revision, name
            )
            return _account(rows[0]) if rows else None

    # ── keys ──────────────────────────────────────────────────────────────────────────────────

    async def create_key(self, key: KeyRow) -> KeyRow:
        """Create a key, and its account if there is none.

        Returns the key as it is stored: its account may have been disabled.
        """
        async with self._database.transaction(durable=True) as session:
            revision = await next_revision(session)
            await _add_account(session, AccountRow(key.account, "", key.created_at), revision)
            await session.execute(
                f"INSERT INTO keys ({_KEY}, revision)"
                " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16,"
                " $17, $18, $19)",
                key.id,
                key.account,
                key.name,
                key.prefix,
                key.hash,
                key.management,
                key.created_at,
                key.expires_at,
                key.revoked_at,
                _packed(key.models),
                key.enabled,
                key.requests_per_minute,
                key.tokens_per_minute,
                key.failover,
                key.reasoning,
                _packed(key.scopes),
                key.priority,
                key.requests_at_once,
                revision,
            )
            rows = await session.fetch("SELECT enabled FROM accounts WHERE name = $1", key.account)
            return msgspec.structs.replace(key, account_enabled=bool(rows[0][0]))

    async def key_by_hash(self, digest: bytes) -> KeyRow | None:
        """Return the key in whatever state it is: check ``usable`` and ``expires_at``."""
        rows = await self._database.fetch(f"{_KEYS} WHERE hash = $1", digest)
        return _key(rows[0]) if rows else None

    async def key_by_id(self, id: str) -> KeyRow | None:
        """Return the key in whatever state it is."""
        rows = await self._database.fetch(f"{_KEYS} WHERE id = $1", id)
        return _key(rows[0]) if rows else None

    async def keys(self, *, account: str | None = None) -> list[KeyRow]:
        """Return all of them, or those of one account, oldest first."""
        where, args = ("", ()) if account is None else (" WHERE account = $1", (account,))
        rows = await self._database.fetch(
            f"{_KEYS}{where} ORDER BY keys.created_at, keys.id", *args
        )
        return [_key(row) for row in rows]

    async def revoke_key(self, id_or_prefix: str, at: float) -> KeyRow | None:
        """Revoke and return a key; None: there is none.  One revoked before stays as it is.

        Raises ``AmbiguousKey`` when the prefix is that of several.
        """
        async with self._database.transaction(durable=True) as session:
            revision = await next_revision(session)
            key = await _find_key(session, id_or_prefix)
            if key is None or key.revoked_at is not None:
                return key
            await session.execute(
                "UPDATE keys SET revoked_at = $1, revision = $2 WHERE id = $3",
                at,
                revision,
                key.id,
            )
            return msgspec.structs.replace(key, revoked_at=at)

    async def set_key_enabled(self, id_or_prefix: str, enabled: bool) -> KeyRow | None:
        """Enable or disable a key; return it, or None when there is none.

        A revoked one stays as it is, as its ``revoked_at`` shows: revoking can't be undone.
        Raises ``AmbiguousKey`` when the prefix is that of several.
        """
        async with self._database.transaction(durable=True) as session:
            revision = await next_revision(session)
            key = await _find_key(session, id_or_prefix)
            if key is None or key.revoked_at is not None:
                return key
            await session.execute(
                "UPDATE keys SET enabled = $1, revision = $2 WHERE id = $3",
                enabled,
                revision,
                key.id,
            )
            return msgspec.structs.replace(key, enabled=enabled)

    async def set_key_policy(
        self, id_or_prefix: str, change: Callable[[KeyRow], KeyRow]
    ) -> KeyRow | None:
        """Set limits and policies to those of the row that ``change`` returns; return the key.

        ``change`` may raise.  A revoked key stays as it is.
        """
        async with self._database.transaction(durable=True) as session:
            revision = await next_revision(session)
            key = await _find_key(session, id_or_prefix)
            if key is None or key.revoked_at is not None:
                return key
            key = change(key)
            await session.execute(
                "UPDATE keys SET requests_per_minute = $1, tokens_per_minute = $2, failover = $3,"
                " reasoning = $4, priority = $5, requests_at_once = $6, revision = $7"
                " WHERE id = $8",
                key.requests_per_minute,
                key.tokens_per_minute,
                key.failover,
                key.reasoning,
                key.priority,
                key.requests_at_once,
                revision,
                key.id,
            )
            return key


async def changed_after(database: Database, revision: int) -> list[KeyRow]:
    rows = await database.fetch(f"{_KEYS} WHERE keys.revision > $1", revision)
    return [_key(row) for row in rows]


async def _add_account(session: Session, account: AccountRow, revision: int) -> bool:
    return bool(
        await session.execute(
            f"INSERT INTO accounts ({_ACCOUNT}, revision) VALUES ($1, $2, $3, $4, $5)"
            " ON CONFLICT (name) DO NOTHING",
            *msgspec.structs.astuple(account),
            revision,
        )
    )


async def _find_key(session: Session, id_or_prefix: str) -> KeyRow | None:
    rows = await session.fetch(f"{_KEYS} WHERE id = $1 OR prefix = $1", id_or_prefix)
    if len(rows) > 1:
        names = ", ".join(row[0] for row in rows)
        raise AmbiguousKey(f"several keys begin with {id_or_prefix}: {names}; name one")
    return _key(rows[0]) if rows else None


def _account(row: Row) -> AccountRow:
    name, note, created, enabled = row
    return AccountRow(name, note, created, bool(enabled))


def _key(row: Row) -> KeyRow:
    id, account, name, prefix, digest, management, created, expires, revoked, models, *others = row
    enabled, requests, tokens, failover, reasoning, scopes, priority, at_once, *others = others
    (account_enabled,) = others
    return KeyRow(
        id=id,
        account=account,
        name=name,
        prefix=prefix,
        hash=digest,
        management=bool(management),  # SQLite has no truth values of its own
        created_at=created,
        expires_at=expires,
        revoked_at=revoked,
        models=_unpacked(models),
        enabled=bool(enabled),
        account_enabled=bool(account_enabled),
        requests_per_minute=requests,
        tokens_per_minute=tokens,
        failover=failover,
        reasoning=reasoning,
        scopes=_unpacked(scopes),
        priority=priority,
        requests_at_once=at_once,
    )


def _packed(names: list[str] | None) -> str | None:
    return None if names is None else msgspec.json.encode(names).decode()


def _unpacked(text: str | None) -> list[str] | None:
    return None if text is None else msgspec.json.decode(text, type=list[str])
