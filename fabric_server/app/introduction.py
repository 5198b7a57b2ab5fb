"""A started server's introduction: what its ready message tells beside the settings."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from fabric_server.storage.store import SqlStore


class Introduction(Struct, frozen=True):
    """The facts of a started server that are not in its settings."""

    ca_sha256: str
    missing: Sequence[tuple[str, str]]
    """The things that an operator has to make yet, each with the command for it."""


async def list_missing(store: SqlStore) -> list[tuple[str, str]]:
    """List what does not exist yet, each with the command that creates it."""
    missing = []
    keys = await store.keys()
    if not any(key.revoked_at is None and not key.management for key in keys):
        missing.append(("key", "keys create NAME"))
    if not any(node.revoked_at is None for node in await store.nodes()):
        missing.append(("node", "nodes invite"))
    return missing
