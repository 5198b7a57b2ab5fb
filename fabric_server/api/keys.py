"""Keys: listed, made and revoked."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated, Literal, Protocol

from msgspec import Meta, Struct

from fabric_server.accounts import Key, mint
from fabric_server.api.asking import not_found
from fabric_server.backends.rows import KeyRow
from fabric_server.backends.store import AmbiguousKey
from fabric_server.refusals import Refusal

log = logging.getLogger("fabric.api")

CENTURY = 36_525 * 86_400.0


class KeyView(Struct, frozen=True, kw_only=True):
    id: str
    state: Literal["good", "expired", "revoked"]
    account: str
    name: str
    prefix: Annotated[str, Meta(description="The first characters of the key's text.")]
    management: Annotated[bool, Meta(description="Manages the fabric, and can't call models.")]
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    models: Annotated[list[str] | None, Meta(description="All it may use; null: every model.")]


class KeyList(Struct, frozen=True):
    data: list[KeyView]


class NewKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    account: Annotated[str, Meta(min_length=1, max_length=256)] = "default"
    management: bool = False
    models: Annotated[list[str], Meta(max_length=1000)] | None = None
    valid_seconds: Annotated[float, Meta(gt=0, le=CENTURY)] | None = None


class MintedKey(Struct, frozen=True):
    text: Annotated[str, Meta(description="The key itself. It can't be had again.")]
    key: KeyView


class Store(Protocol):
    async def keys(self) -> list[KeyRow]: ...
    async def create_key(self, key: KeyRow) -> None: ...
    async def revoke_key(self, id_or_prefix: str, at: float) -> KeyRow | None: ...


class Watch(Protocol):
    async def look(self) -> None: ...


class Keys:
    def __init__(self, store: Store, watch: Watch, clock: Callable[[], float]) -> None:
        self._store = store
        self._watch = watch
        self._clock = clock

    async def list_keys(self) -> KeyList:
        """All keys, oldest first, revoked and expired ones too."""
        return KeyList([self._view(row) for row in await self._store.keys()])

    async def create_key(self, body: NewKey, by: Key) -> MintedKey:
        """Make a key. Its text is in this answer and nowhere else.

        An API key calls models; a management key does what is described here, and nothing else.
        """
        now = self._clock()
        try:
            new = mint(
                body.name,
                now=now,
                account=body.account,
                management=body.management,
                models=body.models,
                expires_at=None if body.valid_seconds is None else now + body.valid_seconds,
            )
        except ValueError as error:
            raise Refusal(400, "invalid_value", f"This is not possible: {error}.") from None
        await self._store.create_key(new.row)
        await self._watch.look()
        log.info("key made", extra={"key": new.row.id, "account": new.row.account, "by": by.id})
        return MintedKey(new.text, self._view(new.row))

    async def revoke_key(self, id: str, by: Key) -> KeyView:
        """Revoke a key, named by its id or prefix. It is refused from now on.

        Revoking a revoked key changes nothing. What it had begun may finish.
        """
        try:
            row = await self._store.revoke_key(id, self._clock())
        except AmbiguousKey as error:
            raise Refusal(409, "ambiguous_key", f"{error}.", param="id") from None
        if row is None:
            raise not_found("key", id)
        await self._watch.look()
        log.info("key revoked", extra={"key": row.id, "by": by.id})
        return self._view(row)

    def _view(self, row: KeyRow) -> KeyView:
        ended = row.expires_at is not None and row.expires_at <= self._clock()
        return KeyView(
            id=row.id,
            state="revoked" if row.revoked_at is not None else "expired" if ended else "good",
            account=row.account,
            name=row.name,
            prefix=row.prefix,
            management=row.management,
            created_at=row.created_at,
            expires_at=row.expires_at,
            revoked_at=row.revoked_at,
            models=row.models,
        )
