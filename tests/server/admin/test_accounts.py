"""Accounts on the API port, and keys that are disabled and enabled."""

from __future__ import annotations

import json
import logging
import time
from typing import Any
from urllib.parse import quote

import pytest

from fabric_server.auth.keys import mint
from tests.contracts.samples import account, key
from tests.server.admin.server import Server

ODD = ("Big {Co}/Lab & Söhne", "a%2Fb", "x" * 256, "...", "{name}", " a ", "?#;,+")


def at(name: str, end: str = "") -> str:
    """The path of an account, as whoever quotes everything writes it."""
    return f"/api/v1/accounts/{quote(name, safe='')}{end}"


async def a_key(server: Server, name: str = "laptop", **more: Any) -> tuple[str, Any]:
    made = await server.post("/api/v1/keys", {"name": name, **more})
    assert made.status == 201
    return made.body["text"], made.body["key"]


async def test_an_account_is_made_once_and_shown(server: Server) -> None:
    made = await server.post("/api/v1/accounts", {"name": "acme", "note": "Ada"})
    assert made.status == 201
    assert made.body.pop("created_at") == pytest.approx(time.time(), abs=5)
    assert made.body == {"name": "acme", "note": "Ada", "enabled": True}
    listed = (await server.get("/api/v1/accounts")).body["data"]
    assert [one["name"] for one in listed] == ["default", "acme"]
    again = await server.post("/api/v1/accounts", {"name": "acme", "note": "Bob"})
    assert (again.status, again.code) == (409, "account_exists")
    shown = (await server.get("/api/v1/accounts/acme")).body
    assert (shown["account"]["note"], shown["keys"]) == ("Ada", [])


async def test_an_account_is_shown_with_its_keys(server: Server) -> None:
    _, first = await a_key(server, "first", account="acme")
    _, second = await a_key(server, "second", account="acme", models=["m"])
    assert (first["state"], first["enabled"]) == ("good", True)
    shown = await server.get("/api/v1/accounts/acme")
    assert shown.body["keys"] == [first, second]
    assert "hash" not in json.dumps(shown.body)
    filtered = await server.get("/api/v1/keys?account=acme")
    assert filtered.body["data"] == [first, second]
    assert (await server.get("/api/v1/keys?account=nobody")).body["data"] == []
    assert len((await server.get("/api/v1/keys")).body["data"]) == 4


async def test_an_account_that_is_disabled_takes_its_keys_along(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    text, shown = await a_key(server, account="acme")
    assert await server.public("/v1/models", text) == 200
    off = await server.post("/api/v1/accounts/acme/disable")
    assert (off.status, off.body["enabled"]) == (200, False)
    assert await server.public("/v1/models", text) == 401
    (one,) = (await server.get("/api/v1/accounts/acme")).body["keys"]
    assert one == {**shown, "state": "account_disabled"}
    assert await server.public("/v1/models", server.user) == 200
    # Twice is as good as once.
    assert (await server.post("/api/v1/accounts/acme/disable")).body == off.body

    _, late = await a_key(server, "late", account="acme")
    assert late["state"] == "account_disabled"
    on = await server.post("/api/v1/accounts/acme/enable")
    assert on.body == {**off.body, "enabled": True}
    assert await server.public("/v1/models", text) == 200
    said = [record for record in caplog.records if record.name == "fabric.api"]
    assert [(one.message, getattr(one, "account", None)) for one in said] == [
        ("key created", "acme"),
        ("account disabled", "acme"),
        ("account disabled", "acme"),
        ("key created", "acme"),
        ("account enabled", "acme"),
    ]
    assert text not in caplog.text


async def test_a_key_is_disabled_and_enabled_by_id_or_prefix(server: Server) -> None:
    text, shown = await a_key(server)
    for name in (shown["id"], shown["prefix"]):
        off = await server.post(f"/api/v1/keys/{name}/disable")
        assert (off.status, off.body) == (200, {**shown, "state": "disabled", "enabled": False})
        assert await server.public("/v1/models", text) == 401
        on = await server.post(f"/api/v1/keys/{name}/enable")
        assert (on.status, on.body) == (200, shown)
        assert await server.public("/v1/models", text) == 200


async def test_a_revoked_key_can_not_be_enabled(server: Server) -> None:
    text, shown = await a_key(server)
    gone = await server.post(f"/api/v1/keys/{shown['id']}/revoke")
    assert (await server.post(f"/api/v1/keys/{shown['id']}/disable")).body == gone.body
    refused = await server.post(f"/api/v1/keys/{shown['id']}/enable")
    assert (refused.status, refused.code) == (409, "key_revoked")
    assert await server.public("/v1/models", text) == 401


@pytest.mark.parametrize("change", ["disable", "enable"])
async def test_what_is_not_there_or_not_clear_is_told(server: Server, change: str) -> None:
    nothing = await server.post(f"/api/v1/accounts/nobody/{change}")
    assert (nothing.status, nothing.code) == (404, "account_not_found")
    assert nothing.body["error"]["param"] == "name"
    assert (await server.get("/api/v1/accounts/nobody")).code == "account_not_found"
    assert (await server.post(f"/api/v1/keys/key_0/{change}")).code == "key_not_found"
    for name in ("one", "two"):
        await server.app.backends.store.create_key(key(name, prefix="sk-fab-same"))
    both = await server.post(f"/api/v1/keys/sk-fab-same/{change}")
    assert (both.status, both.code) == (409, "ambiguous_key")


async def test_a_management_key_may_shut_itself_out_and_the_store_lets_it_in_again(
    server: Server,
) -> None:
    assert (await server.post("/api/v1/accounts/default/disable")).status == 200
    out = await server.get("/api/v1/accounts")
    assert (out.status, out.code) == (401, "account_deactivated")
    assert out.headers["WWW-Authenticate"].startswith("Bearer")
    await server.app.backends.store.set_account_enabled("default", True)
    await server.app.change_feed.sync()
    assert (await server.get("/api/v1/accounts")).status == 200


@pytest.mark.parametrize("name", ODD)
async def test_an_account_of_any_name_can_be_reached(server: Server, name: str) -> None:
    assert (await server.post("/api/v1/accounts", {"name": name})).status == 201
    text, shown = await a_key(server, account=name)
    found = await server.get(at(name))
    assert (found.status, found.body["account"]["name"]) == (200, name)
    assert found.body["keys"] == [shown]
    for change in ("disable", "enable"):
        changed = await server.post(at(name, f"/{change}"))
        assert (changed.body["name"], changed.body["enabled"]) == (name, change == "enable")
    listed = await server.get("/api/v1/keys", params={"account": name})
    assert listed.body["data"] == [shown]
    assert await server.public("/v1/models", text) == 200


async def test_an_account_of_an_older_release_can_be_disabled_whatever_it_is_called(
    server: Server,
) -> None:
    new = mint("old", now=time.time())
    await server.app.backends.store.create_account(account("tab\there"))
    await server.app.backends.store.create_key(key(hash=new.row.hash, account="tab\there"))
    assert await server.public("/v1/models", new.text) == 200
    assert (await server.post("/api/v1/accounts/tab%09here/disable")).status == 200
    assert await server.public("/v1/models", new.text) == 401


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "missing required field `name`"),
        ({"name": ""}, "name: Expected `str` of length >= 1"),
        ({"name": "x" * 257}, "name: Expected `str` of length <= 256"),
        ({"name": "a\nb"}, "printable"),
        ({"name": ".."}, "can't be"),
        ({"name": "a", "note": "x" * 1001}, "note: Expected `str` of length <= 1000"),
        ({"name": "a", "note": "\x00"}, "printable"),
        ({"name": "a", "enabled": False}, "There is no field 'enabled'"),
    ],
)
async def test_an_account_that_makes_no_sense_is_refused(
    server: Server, body: dict[str, object], words: str
) -> None:
    wrong = await server.post("/api/v1/accounts", body)
    assert (wrong.status, wrong.code) == (400, "invalid_value")
    assert words in wrong.message
    assert len((await server.get("/api/v1/accounts")).body["data"]) == 1


@pytest.mark.parametrize("query", ["acount=acme", f"account={'x' * 257}", "account=a&account=b"])
async def test_a_wrong_filter_is_told(server: Server, query: str) -> None:
    wrong = await server.get(f"/api/v1/keys?{query}")
    assert (wrong.status, wrong.code) == (400, "invalid_value")
