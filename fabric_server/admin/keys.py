"""Keys: list, create, edit, disable, enable and revoke."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Annotated, Protocol

from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import asdict

from fabric_server.admin.parameters import invalid_value, not_found
from fabric_server.auth.keys import Key, KeyPolicy, KeyPolicyUpdate, mint
from fabric_server.dialects.errors import ApiError
from fabric_server.storage.keys import AmbiguousKey
from fabric_server.storage.rows import (
    Failover,
    KeyRow,
    KeyState,
    PriorityName,
    Reasoning,
    Scope,
)

log = logging.getLogger("fabric.api")

CENTURY = 36_525 * 86_400.0


class KeyQuery(Struct, frozen=True, forbid_unknown_fields=True):
    account: Annotated[
        Annotated[str, Meta(max_length=256)] | None, Meta(description="Only keys of this account.")
    ] = None


class KeyView(Struct, frozen=True, kw_only=True):
    id: str
    state: KeyState
    enabled: Annotated[
        bool, Meta(description="The key's own switch; its account may be disabled all the same.")
    ]
    account: str
    name: str
    prefix: Annotated[str, Meta(description="The first characters of the key's text.")]
    management: Annotated[bool, Meta(description="true: for this API; can't call models.")]
    created_at: float
    expires_at: float | None
    revoked_at: float | None
    models: Annotated[list[str] | None, Meta(description="Models it may call; null: every model.")]
    requests_per_minute: Annotated[int | None, Meta(description="null: no limit.")]
    tokens_per_minute: Annotated[int | None, Meta(description="null: no limit.")]
    failover: Annotated[
        str,
        Meta(description="'continue': a stream continues on another node when its node is lost."),
    ]
    reasoning: Annotated[
        str, Meta(description="'raw': reasoning is passed on as the engine wrote it.")
    ]
    scopes: Annotated[
        list[str] | None,
        Meta(description="The only things that a management key may do; null: everything."),
    ]
    priority: Annotated[
        str,
        Meta(description="The highest that its requests may have: 'high', 'medium' or 'low'."),
    ]
    requests_at_once: Annotated[
        int | None, Meta(description="The most requests under way at once; null: no limit.")
    ]


class KeyList(Struct, frozen=True):
    data: list[KeyView]


class NewKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    account: Annotated[str, Meta(min_length=1, max_length=256)] = "default"
    management: bool = False
    models: Annotated[list[str], Meta(max_length=1000)] | None = None
    valid_seconds: Annotated[float, Meta(gt=0, le=CENTURY)] | None = None
    requests_per_minute: Annotated[int, Meta(ge=1)] | None = None
    tokens_per_minute: Annotated[int, Meta(ge=1)] | None = None
    failover: Failover = ""
    reasoning: Reasoning = ""
    scopes: (
        Annotated[
            list[Scope],
            Meta(min_length=1, max_length=20, description="metrics: read /metrics."),
        ]
        | None
    ) = None
    priority: PriorityName = "medium"
    requests_at_once: Annotated[int, Meta(ge=1)] | None = None


class EditedKey(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    requests_per_minute: Annotated[int, Meta(ge=1)] | UnsetType | None = UNSET
    tokens_per_minute: Annotated[int, Meta(ge=1)] | UnsetType | None = UNSET
    failover: Failover | UnsetType = UNSET
    reasoning: Reasoning | UnsetType = UNSET
    priority: PriorityName | UnsetType = UNSET
    requests_at_once: Annotated[int, Meta(ge=1)] | UnsetType | None = UNSET


class MintedKey(Struct, frozen=True):
    text: Annotated[str, Meta(description="The key itself. It is not shown again.")]
    key: KeyView


class Store(Protocol):
    async def keys(self, *, account: str | None) -> list[KeyRow]: ...
    async def create_key(self, key: KeyRow) -> KeyRow: ...
    async def revoke_key(self, id_or_prefix: str, at: float) -> KeyRow | None: ...
    async def set_key_enabled(self, id_or_prefix: str, enabled: bool) -> KeyRow | None: ...
    async def set_key_policy(
        self, id_or_prefix: str, change: Callable[[KeyRow], KeyRow]
    ) -> KeyRow | None: ...


class ChangeFeed(Protocol):
    async def sync(self) -> None: ...


class KeyHandlers:
    """Handlers of ``/api/v1/keys…``."""

    def __init__(self, store: Store, change_feed: ChangeFeed, clock: Callable[[], float]) -> None:
        self._store = store
        self._change_feed = change_feed
        self._clock = clock

    async def list_keys(self, query: KeyQuery) -> KeyList:
        """List all keys, or those of one account, oldest first, in whatever state."""
        rows = await self._store.keys(account=query.account)
        now = self._clock()
        return KeyList([view(row, now) for row in rows])

    async def create_key(self, body: NewKey, by: Key) -> MintedKey:
        """Create a key. This response has its text, which is not shown again.

        The account is created, too, if it does not exist.
        An API key calls models; a management key calls this API, and nothing else. With `scopes`,
        it may only do what these allow.
        """
        now = self._clock()
        try:
            new = mint(
                body.name,
                now=now,
                account=body.account,
                management=body.management,
                expires_at=None if body.valid_seconds is None else now + body.valid_seconds,
                policy=KeyPolicy(
                    models=body.models,
                    requests_per_minute=body.requests_per_minute,
                    tokens_per_minute=body.tokens_per_minute,
                    failover=body.failover,
                    reasoning=body.reasoning,
                    scopes=None if body.scopes is None else list[str](body.scopes),
                    priority=body.priority,
                    requests_at_once=body.requests_at_once,
                ),
            )
        except ValueError as error:
            raise invalid_value(error) from None
        row = await self._store.create_key(new.row)
        await self._change_feed.sync()
        log.info("key created", extra={"key": row.id, "account": row.account, "by": by.id})
        return MintedKey(new.text, view(row, now))

    async def edit_key(self, id: str, body: EditedKey, by: Key) -> KeyView:
        """Change limits and policies of a key, by its id or prefix; null removes a limit.

        Fields that are left out keep their values. A changed limit starts with its full allowance.
        """
        update = KeyPolicyUpdate(**asdict(body))
        try:
            row = await self._change(id, lambda: self._store.set_key_policy(id, update.apply_to))
        except ValueError as error:
            raise invalid_value(error) from None
        if row.revoked_at is not None:
            raise _revoked(row)
        log.info("key edited", extra={"key": row.id, "by": by.id})
        return view(row, self._clock())

    async def revoke_key(self, id: str, by: Key) -> KeyView:
        """Revoke a key, by its id or prefix: it is refused for good.

        Its running requests are cancelled. Revoking a revoked key changes nothing.
        """
        now = self._clock()
        row = await self._change(id, lambda: self._store.revoke_key(id, now))
        log.info("key revoked", extra={"key": row.id, "by": by.id})
        return view(row, now)

    async def disable_key(self, id: str, by: Key) -> KeyView:
        """Disable a key, by its id or prefix: it is refused until it is enabled again.

        Its running requests are cancelled. Disabling a disabled or revoked key changes nothing.
        """
        row = await self._change(id, lambda: self._store.set_key_enabled(id, False))
        if row.revoked_at is None:
            log.info("key disabled", extra={"key": row.id, "by": by.id})
        return view(row, self._clock())

    async def enable_key(self, id: str, by: Key) -> KeyView:
        """Enable a disabled key, by its id or prefix. A revoked key can't be enabled.

        The key works at once, unless it has expired or its account is disabled: see its state.
        """
        row = await self._change(id, lambda: self._store.set_key_enabled(id, True))
        if row.revoked_at is not None:
            raise _revoked(row)
        log.info("key enabled", extra={"key": row.id, "by": by.id})
        return view(row, self._clock())

    async def _change(self, id: str, change: Callable[[], Awaitable[KeyRow | None]]) -> KeyRow:
        try:
            row = await change()
        except AmbiguousKey as error:
            raise ApiError(409, "ambiguous_key", f"{error}.", param="id") from None
        if row is None:
            raise not_found("key", id)
        await self._change_feed.sync()
        return row


def _revoked(row: KeyRow) -> ApiError:
    text = f"{row.id} was revoked for good. Create a new key."
    return ApiError(409, "key_revoked", text, param="id")


def view(row: KeyRow, now: float) -> KeyView:
    """Describe a key, without its hash; ``now`` is Unix seconds."""
    return KeyView(
        id=row.id,
        state=row.state(now),
        enabled=row.enabled,
        account=row.account,
        name=row.name,
        prefix=row.prefix,
        management=row.management,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        models=row.models,
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        failover=row.failover,
        reasoning=row.reasoning,
        scopes=row.scopes,
        priority=row.priority,
        requests_at_once=row.requests_at_once,
    )
