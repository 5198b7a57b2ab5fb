"""Limits and policies of keys that exist: changed over the API, and seen by servers that run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from fabric_server.auth.keys import KeyPolicyUpdate
from fabric_server.storage.connect import open_store
from tests.fabric import Fabric


@pytest.fixture
async def fabric(tmp_path: Path) -> AsyncIterator[Fabric]:
    async with Fabric(tmp_path) as fabric:
        yield fabric


async def patch(fabric: Fabric, id: str, body: Any) -> tuple[int, Any]:
    headers = {"authorization": f"Bearer {fabric.management_key}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.patch(f"{fabric.api}/api/v1/keys/{id}", json=body, ssl=fabric.trust()) as answer,
    ):
        return answer.status, await answer.json()


async def test_what_is_given_changes_at_once_and_the_rest_stays(fabric: Fabric) -> None:
    key = await fabric.app.data_plane.authenticator.authenticate(fabric.key)
    status, shown = await patch(fabric, key.id, {"requests_per_minute": 7, "reasoning": "raw"})
    assert status == 200
    assert (shown["requests_per_minute"], shown["reasoning"], shown["failover"]) == (7, "raw", "")
    known = fabric.app.data_plane.authenticator.cached(fabric.key)
    assert known is not None
    assert (known.requests_per_minute, known.reasoning) == (7, "raw")
    assert (known.priority, known.requests_at_once) == ("medium", None)
    status, shown = await patch(fabric, key.id, {"priority": "high", "requests_at_once": 2})
    assert (shown["priority"], shown["requests_at_once"]) == ("high", 2)
    known = fabric.app.data_plane.authenticator.cached(fabric.key)
    assert known is not None
    assert (known.priority, known.requests_at_once) == ("high", 2)
    prefix = fabric.key[:13]
    status, shown = await patch(fabric, prefix, {"failover": "continue", "tokens_per_minute": 9})
    assert (shown["requests_per_minute"], shown["tokens_per_minute"]) == (7, 9)
    body = {"requests_per_minute": None, "tokens_per_minute": None, "reasoning": ""}
    status, shown = await patch(fabric, key.id, body)
    assert (shown["requests_per_minute"], shown["reasoning"]) == (None, "")
    known = fabric.app.data_plane.authenticator.cached(fabric.key)
    assert known is not None
    assert (known.limited, known.failover) == (True, "continue"), "by its requests at once"
    await patch(fabric, key.id, {"requests_at_once": None})
    known = fabric.app.data_plane.authenticator.cached(fabric.key)
    assert known is not None
    assert not known.limited


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "othing to change"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"failover": "always"}, "failover"),
        ({"failover": None}, "failover"),
        ({"priority": "urgent"}, "priority"),
        ({"priority": None}, "priority"),
        ({"requests_at_once": 0}, "requests_at_once"),
        ({"name": "other"}, "There is no field 'name'"),
    ],
)
async def test_what_makes_no_sense_is_refused(fabric: Fabric, body: Any, words: str) -> None:
    key = await fabric.app.data_plane.authenticator.authenticate(fabric.key)
    status, told = await patch(fabric, key.id, body)
    assert status == 400
    assert words in told["error"]["message"]


async def test_keys_that_have_no_terms_are_told_apart(fabric: Fabric) -> None:
    manager = await fabric.app.data_plane.authenticator.authenticate(fabric.management_key)
    for policy in ({"requests_per_minute": 5}, {"requests_at_once": 5}, {"priority": "high"}):
        status, told = await patch(fabric, manager.id, policy)
        assert (status, "management" in told["error"]["message"].lower()) == (400, True)
    status, told = await patch(fabric, "key_nobody", {"requests_per_minute": 5})
    assert (status, told["error"]["code"]) == (404, "key_not_found")
    key = await fabric.app.data_plane.authenticator.authenticate(fabric.key)
    await fabric.app.backends.store.revoke_key(key.id, 1.0)
    status, told = await patch(fabric, key.id, {"requests_per_minute": 5})
    assert (status, told["error"]["code"]) == (409, "key_revoked")


async def test_a_running_server_sees_what_another_process_changes(fabric: Fabric) -> None:
    key = await fabric.app.data_plane.authenticator.authenticate(fabric.key)
    store = await open_store(fabric.config.store_url)
    await store.set_key_policy(key.id, KeyPolicyUpdate(tokens_per_minute=3).apply_to)
    await store.close()
    async with asyncio.timeout(10):
        while not limited(fabric):  # noqa: ASYNC110 - the server tells nobody that it has noticed
            await asyncio.sleep(0.01)


def limited(fabric: Fabric) -> bool:
    known = fabric.app.data_plane.authenticator.cached(fabric.key)
    return known is not None and known.tokens_per_minute == 3
