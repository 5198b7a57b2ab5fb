"""Keys on the API port."""

from __future__ import annotations

import json
import time

import pytest

from fabric_server.auth.keys import mint
from tests.contracts.samples import key
from tests.server.admin.server import Server


async def test_a_key_is_made_shown_once_used_and_revoked_at_once(server: Server) -> None:
    limits = {"requests_per_minute": 60, "tokens_per_minute": 10_000, "requests_at_once": 3}
    limits |= {"priority": "low"}
    named = {"name": "laptop", "account": "ada", "models": ["m"], "valid_seconds": 60}
    made = await server.post("/api/v1/keys", named | limits)
    assert made.status == 201
    text, shown = made.body["text"], made.body["key"]
    assert text.startswith("sk-fab-") and text.startswith(shown["prefix"])
    assert (shown["account"], shown["models"], shown["state"]) == ("ada", ["m"], "good")
    assert shown.items() >= limits.items()
    assert shown["expires_at"] == pytest.approx(time.time() + 60, abs=5)
    assert await server.public("/v1/models", text) == 200

    listed = await server.get("/api/v1/keys")
    assert listed.body["data"][-1] == shown
    assert text not in json.dumps(listed.body) and "hash" not in json.dumps(listed.body)

    gone = await server.post(f"/api/v1/keys/{shown['id']}/revoke")
    assert (gone.status, gone.body["state"]) == (200, "revoked")
    assert await server.public("/v1/models", text) == 401
    again = await server.post(f"/api/v1/keys/{shown['prefix']}/revoke")
    assert again.body == gone.body


async def test_a_new_management_key_manages_and_a_revoked_one_does_not(server: Server) -> None:
    made = await server.post("/api/v1/keys", {"name": "deputy", "management": True})
    deputy = made.body["text"]
    assert deputy.startswith("mk-fab-")
    assert (await server.get("/api/v1/nodes", key=deputy)).status == 200
    await server.post(f"/api/v1/keys/{made.body['key']['id']}/revoke")
    assert (await server.get("/api/v1/nodes", key=deputy)).status == 401


async def test_revoking_a_key_that_is_not_there_is_told(server: Server) -> None:
    nothing = await server.post("/api/v1/keys/key_nothing/revoke")
    assert (nothing.status, nothing.code) == (404, "key_not_found")


async def test_a_prefix_that_two_keys_have_revokes_neither(server: Server) -> None:
    for name in ("one", "two"):
        await server.app.backends.store.create_key(key(name, prefix="sk-fab-same"))
    both = await server.post("/api/v1/keys/sk-fab-same/revoke")
    assert (both.status, both.code) == (409, "ambiguous_key")
    assert "key_one" in both.message and "key_two" in both.message
    assert {one["state"] for one in (await server.get("/api/v1/keys")).body["data"]} == {"good"}


async def test_an_expired_key_is_shown_as_such(server: Server) -> None:
    new = mint("short", now=time.time() - 100, expires_at=time.time() - 50)
    await server.app.backends.store.create_key(new.row)
    keys = (await server.get("/api/v1/keys")).body["data"]
    assert {one["name"]: one["state"] for one in keys} == {"test": "good", "short": "expired"}
