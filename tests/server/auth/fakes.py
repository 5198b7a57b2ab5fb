"""Stores and caches that the tests of authentication control."""

from __future__ import annotations

import asyncio

import pytest

from fabric_server.auth.authenticator import KeyAuthenticator
from fabric_server.auth.keys import NewKey
from fabric_server.dialects.errors import ApiError
from fabric_server.storage.rows import KeyRow
from runtime.errors import BackendError, StoreError
from tests.contracts.samples import NOON


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


class Keys:
    """A store that counts, and that can be slow or away."""

    revision_at_open = 1

    def __init__(self, *new: NewKey) -> None:
        self.rows = {one.row.hash: one.row for one in new}
        self.asked = 0
        self.away = False
        self.entered = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def key_by_hash(self, digest: bytes) -> KeyRow | None:
        self.asked += 1
        self.entered.set()
        row = self.rows.get(digest)
        await self.gate.wait()
        if self.away:
            raise StoreError("the store is away")
        return row


class NoCache:
    """A cache that is away."""

    async def get(self, name: str) -> bytes | None:
        raise BackendError("no cache")

    async def set(self, name: str, value: bytes, seconds: float) -> None:
        raise BackendError("no cache")


class Rubbish:
    """A cache in which another program writes."""

    def __init__(self, value: bytes) -> None:
        self.value = value

    async def get(self, name: str) -> bytes | None:
        return self.value

    async def set(self, name: str, value: bytes, seconds: float) -> None:
        pass


class Forgetful:
    """A cache that never keeps anything."""

    async def get(self, name: str) -> bytes | None:
        return None

    async def set(self, name: str, value: bytes, seconds: float) -> None:
        pass


async def refusal(authenticator: KeyAuthenticator, token: str) -> ApiError:
    with pytest.raises(ApiError) as caught:
        await authenticator.authenticate(token)
    return caught.value


def revoked(new: NewKey) -> KeyRow:
    row = new.row
    return KeyRow(
        row.id, row.account, row.name, row.prefix, row.hash, row.management, NOON, None, NOON
    )
