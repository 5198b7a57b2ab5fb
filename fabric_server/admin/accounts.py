"""Accounts: list, create, show with their keys, disable and enable."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated, Protocol

from msgspec import Meta, Struct

from fabric_server.admin.keys import KeyView
from fabric_server.admin.keys import view as key_view
from fabric_server.admin.parameters import invalid_value, not_found
from fabric_server.auth.keys import Key, new_account
from fabric_server.dialects.errors import ApiError
from fabric_server.storage.rows import AccountRow, KeyRow

log = logging.getLogger("fabric.api")


class AccountView(Struct, frozen=True, kw_only=True):
    name: str
    enabled: Annotated[bool, Meta(description="false: none of the account's keys works.")]
    note: Annotated[str, Meta(description="For operators; clients never see it.")]
    created_at: float


class AccountList(Struct, frozen=True):
    data: list[AccountView]


class AccountDetail(Struct, frozen=True):
    account: AccountView
    keys: list[KeyView]


class NewAccount(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    note: Annotated[str, Meta(max_length=1000)] = ""


class Store(Protocol):
    async def account(self, name: str) -> AccountRow | None: ...
    async def accounts(self) -> list[AccountRow]: ...
    async def create_account(self, account: AccountRow) -> bool: ...
    async def set_account_enabled(self, name: str, enabled: bool) -> AccountRow | None: ...
    async def keys(self, *, account: str | None) -> list[KeyRow]: ...


class ChangeFeed(Protocol):
    async def sync(self) -> None: ...


class AccountHandlers:
    """Handlers of ``/api/v1/accounts…``."""

    def __init__(self, store: Store, change_feed: ChangeFeed, clock: Callable[[], float]) -> None:
        self._store = store
        self._change_feed = change_feed
        self._clock = clock

    async def list_accounts(self) -> AccountList:
        """List all accounts, oldest first."""
        return AccountList(list(map(_view, await self._store.accounts())))

    async def create_account(self, body: NewAccount, by: Key) -> AccountView:
        """Create an account. Creating a key for a new account creates the account, too."""
        try:
            row = new_account(body.name, now=self._clock(), note=body.note)
        except ValueError as error:
            raise invalid_value(error) from None
        if not await self._store.create_account(row):
            text = f"The account '{row.name}' exists already."
            raise ApiError(409, "account_exists", text, param="name")
        log.info("account created", extra={"account": row.name, "by": by.id})
        return _view(row)

    async def show_account(self, name: str) -> AccountDetail:
        """Show one account and all its keys, oldest first."""
        row = await self._store.account(name)
        if row is None:
            raise not_found("account", name, param="name")
        now = self._clock()
        keys = await self._store.keys(account=name)
        return AccountDetail(_view(row), [key_view(key, now) for key in keys])

    async def disable_account(self, name: str, by: Key) -> AccountView:
        """Disable an account: all its keys, also management keys, are refused until it is enabled.

        Running requests are cancelled. Disabling a disabled account changes nothing.
        """
        row = await self._set_enabled(name, False)
        log.info("account disabled", extra={"account": row.name, "by": by.id})
        return _view(row)

    async def enable_account(self, name: str, by: Key) -> AccountView:
        """Enable an account. Its keys work again, except those that are disabled themselves."""
        row = await self._set_enabled(name, True)
        log.info("account enabled", extra={"account": row.name, "by": by.id})
        return _view(row)

    async def _set_enabled(self, name: str, enabled: bool) -> AccountRow:
        row = await self._store.set_account_enabled(name, enabled)
        if row is None:
            raise not_found("account", name, param="name")
        await self._change_feed.sync()
        return row


def _view(row: AccountRow) -> AccountView:
    return AccountView(name=row.name, enabled=row.enabled, note=row.note, created_at=row.created_at)
