# ruff: noqa: S608 - only column names of ours are put into a text
"""The tables of nodes, of the invitations that let them join, and of the models they serve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import msgspec

from fabric_server.storage.revision import next_revision
from fabric_server.storage.rows import InvitationRow, NodeRow, Redeemed, ServedRow
from sql.database import Database, Many, Row

# In the order of NodeRow.
_NODE = (
    "id, name, public_key_sha256, created_at, revoked_at, epoch, last_seen_at, platform, version,"
    " online, draining, problem, region, contested_at, contested_by, next_key_sha256"
)

MAX_SERVED = 2_000
"""Models that are stored of one node: those that it began to serve last."""
_SERVED = Many(
    "WITH given (node_id, model, seen_at, quantization, digest) AS (given)"
    " INSERT INTO served_models (node_id, model, seen_at, quantization, digest)"
    " SELECT node_id, model, seen_at, quantization, digest FROM given WHERE true"
    " ON CONFLICT (node_id, model) DO UPDATE SET seen_at = excluded.seen_at,"
    " quantization = excluded.quantization, digest = excluded.digest",
    ("TEXT", "TEXT", "DOUBLE PRECISION", "TEXT", "TEXT"),
)


class NodeStore:
    """Nodes and invitations.  Every method raises ``StoreError`` when the database can't."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_invitation(self, invitation: InvitationRow) -> None:
        async with self._database.transaction(durable=True) as session:
            await session.execute(
                "INSERT INTO invitations"
                " (id, secret_hash, created_at, expires_at, used_at, node_id, name)"
                " VALUES ($1, $2, $3, $4, $5, $6, $7)",
                *msgspec.structs.astuple(invitation),
            )
            await next_revision(session)

    async def invitation(self, secret_hash: bytes) -> InvitationRow | None:
        """Return an invitation in whatever state it is."""
        rows = await self._database.fetch(
            "SELECT id, secret_hash, created_at, expires_at, used_at, node_id, name"
            " FROM invitations WHERE secret_hash = $1",
            secret_hash,
        )
        return InvitationRow(*rows[0]) if rows else None

    async def redeem_invitation(self, secret_hash: bytes, node: NodeRow, at: float) -> Redeemed:
        """Use the invitation up and create the node, both or neither."""
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
                " VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16,"
                " $17)",
                *msgspec.structs.astuple(node),
                await next_revision(session),
            )
            await session.execute(
                "UPDATE invitations SET node_id = $1 WHERE secret_hash = $2", node.id, secret_hash
            )
            return Redeemed.OK

    async def node(self, id: str) -> NodeRow | None:
        rows = await self._database.fetch(f"SELECT {_NODE} FROM nodes WHERE id = $1", id)
        return _node(rows[0]) if rows else None

    async def nodes(self, seen_since: float | None = None) -> list[NodeRow]:
        """Return all of them, or those seen since then, oldest first."""
        rows = await self._database.fetch(
            f"SELECT {_NODE} FROM nodes WHERE online OR COALESCE(last_seen_at, created_at) >= $1"
            " ORDER BY created_at, id",
            -float(2**53) if seen_since is None else seen_since,
        )
        return [_node(row) for row in rows]

    async def revoke_node(self, id: str, at: float) -> NodeRow | None:
        """Revoke and return a node; None: there is none.  One revoked before stays as it is."""
        async with self._database.transaction(durable=True) as session:
            await session.execute(
                "UPDATE nodes SET revoked_at = $1, revision = $2"
                " WHERE id = $3 AND revoked_at IS NULL",
                at,
                await next_revision(session),
                id,
            )
            await session.execute("DELETE FROM served_models WHERE node_id = $1", id)
            rows = await session.fetch(f"SELECT {_NODE} FROM nodes WHERE id = $1", id)
            return _node(rows[0]) if rows else None

    async def contest_node(self, id: str, at: float, addresses: str) -> None:
        """Store that two machines use a node's key; a key that it has not used yet is void."""
        async with self._database.transaction(durable=True) as session:
            await session.execute(
                "UPDATE nodes SET contested_at = $1, contested_by = $2, next_key_sha256 = NULL,"
                " revision = $3 WHERE id = $4 AND contested_at IS NULL",
                at,
                addresses,
                await next_revision(session),
                id,
            )

    async def settle_node(self, id: str) -> NodeRow | None:
        """Admit a contested node again; return the node, or None when there is none."""
        async with self._database.transaction(durable=True) as session:
            rows = await session.fetch(
                "UPDATE nodes SET contested_at = NULL, contested_by = '', revision = $1"
                f" WHERE id = $2 RETURNING {_NODE}",
                await next_revision(session),
                id,
            )
            return _node(rows[0]) if rows else None

    async def set_next_node_key(self, id: str, key_sha256: bytes) -> None:
        """Store the key of a certificate that is about to be issued to a node."""
        async with self._database.transaction(durable=True) as session:
            await session.execute(
                "UPDATE nodes SET next_key_sha256 = $1 WHERE id = $2 AND revoked_at IS NULL",
                key_sha256,
                id,
            )

    async def confirm_node_key(self, id: str, key_sha256: bytes) -> None:
        """Replace a node's key by the next one, which it has used."""
        async with self._database.transaction(durable=True) as session:
            await session.execute(
                "UPDATE nodes SET public_key_sha256 = $1, next_key_sha256 = NULL"
                " WHERE id = $2 AND next_key_sha256 = $1",
                key_sha256,
                id,
            )

    async def set_node_draining(self, id: str, draining: bool) -> NodeRow | None:
        """Start or end draining; return the node, or None when there is none."""
        async with self._database.transaction(durable=True) as session:
            rows = await session.fetch(
                f"UPDATE nodes SET draining = $1, revision = $2 WHERE id = $3 RETURNING {_NODE}",
                draining,
                await next_revision(session),
                id,
            )
            return _node(rows[0]) if rows else None

    async def set_node_problem(self, id: str, epoch: int, problem: str) -> None:
        """Store why a registration's engines get no requests; ignored if a newer one exists."""
        async with self._database.transaction() as session:
            await session.execute(
                "UPDATE nodes SET problem = $1 WHERE id = $2 AND epoch = $3", problem, id, epoch
            )

    async def next_epoch(self, node_id: str) -> int | None:
        """Return the number of a new registration; None when the node is unknown or revoked."""
        # Not durable: a power cut that undoes it undoes all that was written under it later, too.
        async with self._database.transaction() as session:
            rows = await session.fetch(
                "UPDATE nodes SET epoch = epoch + 1 WHERE id = $1 AND revoked_at IS NULL"
                " RETURNING epoch",
                node_id,
            )
            return int(rows[0][0]) if rows else None

    async def add_served_models(
        self,
        node_id: str,
        models: Sequence[str],
        at: float,
        variants: Mapping[str, tuple[str, str]] = MappingProxyType({}),
    ) -> None:
        """Add models that a node has begun to serve; of too many, the oldest are deleted.

        ``variants`` has the quantisation and the digest of those whose weights are known.
        """
        rows = [(node_id, model, at, *variants.get(model, ("", ""))) for model in models]
        async with self._database.transaction() as session:
            await session.many(_SERVED, rows)
            await session.execute(
                "DELETE FROM served_models WHERE node_id = $1 AND model IN"
                " (SELECT model FROM served_models WHERE node_id = $1"
                " ORDER BY seen_at DESC, model LIMIT 1000000 OFFSET $2)",
                node_id,
                MAX_SERVED,
            )

    async def served_models(self, node_id: str) -> list[ServedRow]:
        """Return the models that a node has served, the last ones first."""
        rows = await self._database.fetch(
            "SELECT model, quantization, digest, seen_at FROM served_models WHERE node_id = $1"
            " ORDER BY seen_at DESC, model",
            node_id,
        )
        return [ServedRow(*row) for row in rows]

    async def known_models(self, since: float, *, limit: int = 10_000) -> list[str]:
        """Return models of nodes that were seen after ``since`` and are not revoked."""
        rows = await self._database.fetch(
            "SELECT DISTINCT model FROM served_models JOIN nodes ON nodes.id = node_id"
            " WHERE revoked_at IS NULL AND last_seen_at >= $1 ORDER BY model LIMIT $2",
            since,
            limit,
        )
        return [str(row[0]) for row in rows]

    async def mark_node_online(
        self, id: str, at: float, *, platform: str, version: str, region: str = ""
    ) -> None:
        """Mark a node online at registration; later heartbeats update ``last_seen_at``."""
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


async def changed_after(database: Database, revision: int) -> list[NodeRow]:
    rows = await database.fetch(f"SELECT {_NODE} FROM nodes WHERE revision > $1", revision)
    return [_node(row) for row in rows]


def _node(row: Row) -> NodeRow:
    values = list(row)
    for column in (9, 10):  # online, draining: SQLite has no truth values of its own
        values[column] = bool(values[column])
    return NodeRow(*values)
