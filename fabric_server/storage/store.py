# ruff: noqa: S608 - only column names of ours are put into a text
"""The store, in SQL that SQLite and PostgreSQL both understand.

Accounts, keys, nodes and invitations here; what is measured (ledger, heartbeats) in ``measured``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

from fabric_server.storage.rows import (
    AccountRow,
    Changes,
    InvitationRow,
    KeyRow,
    NodeRow,
    Redeemed,
)
from ledger.tables import Measured
from sql.connect import migrate
from sql.database import Database, Row, Session, insertion

# In the order of AccountRow, of KeyRow and of NodeRow.
_ACCOUNT = "name, note, created_at, enabled"
_KEY = (
    "id, account, name, prefix, hash, management, created_at, expires_at, revoked_at, models,"
    " enabled, requests_per_minute, tokens_per_minute, failover, reasoning"
)
# A server of the release before makes keys whose account has no row.
_KEYS = (
    f"SELECT {', '.join(f'keys.{column}' for column in _KEY.split(', '))},"
    " COALESCE(accounts.enabled, TRUE)"
    " FROM keys LEFT JOIN accounts ON accounts.name = keys.account"
)
_NODE = (
    "id, name, public_key_sha256, created_at, revoked_at, epoch, last_seen_at, platform, version,"
    " online, draining, problem, region"
)

_SERVED = insertion("served_models", {"node_id": "TEXT", "model": "TEXT"})


class AmbiguousKey(Exception):
    """Several keys have this prefix; ``str()`` names them."""


class SqlStore(Measured):
    """All that outlives the process.  Every method raises ``StoreError`` when the database can't.

    Changes of accounts, keys, nodes and invitations bump ``revision`` in their own transaction;
    ``changes`` tells other processes what to forget.
    """

    def __init__(self, database: Database, revision: int) -> None:
        super().__init__(database)
        self.revision_at_open = revision
        """All that is read through this object is as new as this revision, or newer."""

    @classmethod
    async def open(cls, database: Database, clock: Callable[[], float] = time.time) -> SqlStore:
        """Brings the schema up to date first.  Closes the database when it can't."""
        try:
            await migrate(database, clock())
            return cls(database, await _revision(database))
        except BaseException:
            await database.close()
            raise

    @property
    def database(self) -> Database:
        """For those who remember things of their own there."""
        return self._database

    async def close(self) -> None:
        await self._database.close()

    async def writable(self) -> bool:
        """Whether the database takes changes: a replica, for one, does not."""
        return await self._database.writable()

    async def revision(self) -> int:
        return await _revision(self._database)

    async def changes(self, since: int) -> Changes:
        """The keys and nodes changed after revision ``since``.  Costs one small query if none.

        When an account is enabled or disabled, all its keys have changed.
        """
        # The number first: a change between the queries is then told twice rather than never.
        revision = await _revision(self._database)
        everything = revision < since
        if revision == since:
            return Changes(revision, everything)
        after = 0 if everything else since
        fetch = self._database.fetch
        keys = await fetch(f"{_KEYS} WHERE keys.revision > $1", after)
        nodes = await fetch(f"SELECT {_NODE} FROM nodes WHERE revision > $1", after)
        return Changes(
            revision, everything, [_key(row) for row in keys], [_node(row) for row in nodes]
        )

    # ── accounts ──────────────────────────────────────────────────────────────────────────────

    async def create_account(self, account: AccountRow) -> bool:
        """False when there is one of this name: it stays as it is."""
        async with self._database.transaction(durable=True) as session:
            return await _add_account(session, account, await _bump(session))

    async def account(self, name: str) -> AccountRow | None:
        rows = await self._database.fetch(f"SELECT {_ACCOUNT} FROM accounts WHERE name = $1", name)
        return _account(rows[0]) if rows else None

    async def accounts(self) -> list[AccountRow]:
        """All of them, oldest first."""
        rows = await self._database.fetch(
            f"SELECT {_ACCOUNT} FROM accounts ORDER BY created_at, name"
        )
        return [_account(row) for row in rows]

    async def set_account_enabled(self, name: str, enabled: bool) -> AccountRow | None:
        """Returns the account as it is now, or None when there is none.

        While it is disabled none of its keys works; each keeps its own ``enabled``.
        """
        async with self._database.transaction(durable=True) as session:
            # First, because it locks: no key of this account is made until we are done.
            revision = await _bump(session)
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
        """Makes the key's account, too, when there is none.

        Returns the key as it is stored: its account may have been disabled.
        """
        async with self._database.transaction(durable=True) as session:
            revision = await _bump(session)
            await _add_account(session, AccountRow(key.account, "", key.created_at), revision)
            await session.execute(
                f"INSERT INTO keys ({_KEY}, revision)"
                " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)",
                key.id,
                key.account,
                key.name,
                key.prefix,
                key.hash,
                key.management,
                key.created_at,
                key.expires_at,
                key.revoked_at,
                None if key.models is None else msgspec.json.encode(key.models).decode(),
                key.enabled,
                key.requests_per_minute,
                key.tokens_per_minute,
                key.failover,
                key.reasoning,
                revision,
            )
            rows = await session.fetch("SELECT enabled FROM accounts WHERE name = $1", key.account)
            return msgspec.structs.replace(key, account_enabled=bool(rows[0][0]))

    async def key_by_hash(self, digest: bytes) -> KeyRow | None:
        """The key in whatever state it is: look at ``usable`` and ``expires_at``."""
        rows = await self._database.fetch(f"{_KEYS} WHERE hash = $1", digest)
        return _key(rows[0]) if rows else None

    async def key_by_id(self, id: str) -> KeyRow | None:
        """As ``key_by_hash``."""
        rows = await self._database.fetch(f"{_KEYS} WHERE id = $1", id)
        return _key(rows[0]) if rows else None

    async def keys(self, *, account: str | None = None) -> list[KeyRow]:
        """All of them, or those of one account, oldest first."""
        where, args = ("", ()) if account is None else (" WHERE account = $1", (account,))
        rows = await self._database.fetch(
            f"{_KEYS}{where} ORDER BY keys.created_at, keys.id", *args
        )
        return [_key(row) for row in rows]

    async def revoke_key(self, id_or_prefix: str, at: float) -> KeyRow | None:
        """Returns the revoked key, or None when there is none.  One revoked before stays as it is.

        Raises ``AmbiguousKey`` when the prefix is that of several.
        """
        async with self._database.transaction(durable=True) as session:
            revision = await _bump(session)
            key = await _named(session, id_or_prefix)
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
        """Returns the key as it is now, or None when there is none.

        A revoked one stays as it is, which its ``revoked_at`` tells: that can't be taken back.
        Raises ``AmbiguousKey`` when the prefix is that of several.
        """
        async with self._database.transaction(durable=True) as session:
            revision = await _bump(session)
            key = await _named(session, id_or_prefix)
            if key is None or key.revoked_at is not None:
                return key
            await session.execute(
                "UPDATE keys SET enabled = $1, revision = $2 WHERE id = $3",
                enabled,
                revision,
                key.id,
            )
            return msgspec.structs.replace(key, enabled=enabled)

    async def set_key_terms(
        self, id_or_prefix: str, change: Callable[[KeyRow], KeyRow]
    ) -> KeyRow | None:
        """Limits and policies as ``change`` wants them, which may raise; returns the key.

        One revoked stays as it is, as in ``set_key_enabled``.
        """
        async with self._database.transaction(durable=True) as session:
            revision = await _bump(session)
            key = await _named(session, id_or_prefix)
            if key is None or key.revoked_at is not None:
                return key
            key = change(key)
            await session.execute(
                "UPDATE keys SET requests_per_minute = $1, tokens_per_minute = $2, failover = $3,"
                " reasoning = $4, revision = $5 WHERE id = $6",
                key.requests_per_minute,
                key.tokens_per_minute,
                key.failover,
                key.reasoning,
                revision,
                key.id,
            )
            return key

    # ── invitations and nodes ─────────────────────────────────────────────────────────────────

    async def create_invitation(self, invitation: InvitationRow) -> None:
        async with self._database.transaction(durable=True) as session:
            await session.execute(
                "INSERT INTO invitations"
                " (id, secret_hash, created_at, expires_at, used_at, node_id, name)"
                " VALUES ($1, $2, $3, $4, $5, $6, $7)",
                *msgspec.structs.astuple(invitation),
            )
            await _bump(session)

    async def invited_as(self, secret_hash: bytes) -> str | None:
        """The name that an invitation wishes for its node, if it wishes one."""
        rows = await self._database.fetch(
            "SELECT name FROM invitations WHERE secret_hash = $1", secret_hash
        )
        return rows[0][0] if rows else None

    async def redeem_invitation(self, secret_hash: bytes, node: NodeRow, at: float) -> Redeemed:
        """Uses the invitation up and makes the node, both or neither."""
        async with self._database.transaction(durable=True) as session:
            # The update comes first: it locks the row, so of two attempts at once one is second.
            mine = await session.execute(
                "UPDATE invitations SET used_at = $1"
                " WHERE secret_hash = $2 AND used_at IS NULL AND expires_at > $1",
                at,
                secret_hash,
            )
            if not mine:
                rows = await session.fetch(
                    "SELECT used_at FROM invitations WHERE secret_hash = $1", secret_hash
                )
                if not rows:
                    return Redeemed.UNKNOWN
                return Redeemed.EXPIRED if rows[0][0] is None else Redeemed.USED
            await session.execute(
                f"INSERT INTO nodes ({_NODE}, revision)"
                " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
                *msgspec.structs.astuple(node),
                await _bump(session),
            )
            await session.execute(
                "UPDATE invitations SET node_id = $1 WHERE secret_hash = $2", node.id, secret_hash
            )
            return Redeemed.OK

    async def node(self, id: str) -> NodeRow | None:
        rows = await self._database.fetch(f"SELECT {_NODE} FROM nodes WHERE id = $1", id)
        return _node(rows[0]) if rows else None

    async def nodes(self) -> list[NodeRow]:
        """All of them, oldest first."""
        rows = await self._database.fetch(f"SELECT {_NODE} FROM nodes ORDER BY created_at, id")
        return [_node(row) for row in rows]

    async def revoke_node(self, id: str, at: float) -> NodeRow | None:
        """Returns the revoked node, or None when there is none.  One revoked before stays as is."""
        async with self._database.transaction(durable=True) as session:
            await session.execute(
                "UPDATE nodes SET revoked_at = $1, revision = $2"
                " WHERE id = $3 AND revoked_at IS NULL",
                at,
                await _bump(session),
                id,
            )
            rows = await session.fetch(f"SELECT {_NODE} FROM nodes WHERE id = $1", id)
            return _node(rows[0]) if rows else None

    async def set_node_draining(self, id: str, draining: bool) -> NodeRow | None:
        """Returns the node as it is now, or None when there is none."""
        async with self._database.transaction(durable=True) as session:
            rows = await session.fetch(
                f"UPDATE nodes SET draining = $1, revision = $2 WHERE id = $3 RETURNING {_NODE}",
                draining,
                await _bump(session),
                id,
            )
            return _node(rows[0]) if rows else None

    async def node_problem(self, id: str, epoch: int, problem: str) -> None:
        """Why a registration's engines are asked nothing; a newer registration's word stands."""
        async with self._database.transaction() as session:
            await session.execute(
                "UPDATE nodes SET problem = $1 WHERE id = $2 AND epoch = $3", problem, id, epoch
            )

    async def next_epoch(self, node_id: str) -> int | None:
        """The number of a new registration; None when the node is unknown or revoked."""
        # Not durable: a power cut that undoes it undoes all that was written under it later, too.
        async with self._database.transaction() as session:
            rows = await session.fetch(
                "UPDATE nodes SET epoch = epoch + 1 WHERE id = $1 AND revoked_at IS NULL"
                " RETURNING epoch",
                node_id,
            )
            return int(rows[0][0]) if rows else None

    async def served(self, node_id: str, models: Sequence[str]) -> None:
        """A node has models that it did not have before."""
        rows = [(node_id, model) for model in models]
        async with self._database.transaction() as session:
            await session.many(_SERVED, rows)

    async def known_models(self, since: float, *, most: int = 10_000) -> list[str]:
        """Models of nodes that were seen after ``since`` and not revoked."""
        rows = await self._database.fetch(
            "SELECT DISTINCT model FROM served_models JOIN nodes ON nodes.id = node_id"
            " WHERE revoked_at IS NULL AND last_seen_at >= $1 ORDER BY model LIMIT $2",
            since,
            most,
        )
        return [str(row[0]) for row in rows]

    async def node_seen(
        self, id: str, at: float, *, platform: str, version: str, region: str = ""
    ) -> None:
        """At registration.  Later ``last_seen_at`` follows the heartbeats by itself."""
        async with self._database.transaction() as session:
            await session.execute(
                "UPDATE nodes SET last_seen_at = $1, platform = $2, version = $3, region = $4,"
                " online = TRUE WHERE id = $5",
                at,
                platform,
                version,
                region,
                id,
            )


async def _revision(database: Database) -> int:
    rows = await database.fetch("SELECT number FROM revision")
    return int(rows[0][0])


async def _bump(session: Session) -> int:
    """The revision of the change that this transaction makes.

    It also makes all others that change something wait for the end of this one, so whoever bumps
    before he looks acts on what he sees.
    """
    rows = await session.fetch("UPDATE revision SET number = number + 1 RETURNING number")
    return int(rows[0][0])


async def _add_account(session: Session, account: AccountRow, revision: int) -> bool:
    return bool(
        await session.execute(
            f"INSERT INTO accounts ({_ACCOUNT}, revision) VALUES ($1, $2, $3, $4, $5)"
            " ON CONFLICT (name) DO NOTHING",
            *msgspec.structs.astuple(account),
            revision,
        )
    )


async def _named(session: Session, id_or_prefix: str) -> KeyRow | None:
    rows = await session.fetch(f"{_KEYS} WHERE id = $1 OR prefix = $1", id_or_prefix)
    if len(rows) > 1:
        names = ", ".join(row[0] for row in rows)
        raise AmbiguousKey(f"several keys begin with {id_or_prefix}: {names}; name one")
    return _key(rows[0]) if rows else None


def _account(row: Row) -> AccountRow:
    name, note, created, enabled = row
    return AccountRow(name, note, created, bool(enabled))


def _node(row: Row) -> NodeRow:
    *others, online, draining, problem, region = row
    # SQLite has no truth values of its own
    values = [*others, bool(online), bool(draining), problem, region]
    return NodeRow(*values)


def _key(row: Row) -> KeyRow:
    id, account, name, prefix, digest, management, created, expires, revoked, models, *others = row
    enabled, requests, tokens, failover, reasoning, account_enabled = others
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
        models=None if models is None else msgspec.json.decode(models, type=list[str]),
        enabled=bool(enabled),
        account_enabled=bool(account_enabled),
        requests_per_minute=requests,
        tokens_per_minute=tokens,
        failover=failover,
        reasoning=reasoning,
    )
