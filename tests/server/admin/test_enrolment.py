"""Invitations and joining machines on the API port."""

from __future__ import annotations

import time

import pytest

from fabric_client.registration.join import JoinError, join
from tests.server.admin.server import NOBODY, Server


async def test_an_invited_machine_joins_once(server: Server) -> None:
    made = await server.post("/api/v1/invitations", {"name": "ada's", "valid_seconds": 60})
    assert made.status == 201
    token = made.body["token"]
    assert (made.body["host"], made.body["name"]) == ("127.0.0.1", "ada's")
    assert made.body["api_port"] == server.app.listeners["api"].port
    assert made.body["ca_sha256"] == server.app.tls.certificates.fingerprint.hex()
    assert made.body["expires_at"] == pytest.approx(time.time() + 60, abs=5)

    identity = await join(token, server.directory / "node", name="attic")
    (joined,) = (await server.get("/api/v1/nodes")).body["data"]
    assert (joined["name"], joined["connected"], joined["epoch"]) == ("attic", False, 0)
    assert joined["id"] == identity.node_id
    with pytest.raises(JoinError, match="already used"):
        await join(token, server.directory / "other", name="cellar")


async def test_an_invitation_needs_nothing_said(server: Server) -> None:
    made = await server.ask("POST", "/api/v1/invitations")
    assert (made.status, made.body["name"]) == (201, None)
    assert made.body["expires_at"] == pytest.approx(time.time() + 86_400, abs=5)


async def test_what_a_joining_machine_asks_is_answered_like_all_else(server: Server) -> None:
    authority = await server.get("/api/v1/ca", key=NOBODY)
    assert authority.body.decode() == server.app.tls.certificates.authority.pem
    bad = await server.post("/api/v1/enrol", {"secret": 1}, key=NOBODY)
    assert bad.status == 400
    unknown = await server.post("/api/v1/enrol", [], key=NOBODY)
    assert unknown.status == 400
