"""Requests of one connection with the same head: each is checked as the first was."""

from __future__ import annotations

from msgspec.structs import replace

from fabric_server.auth.authenticator import digest_of
from fabric_server.storage.rows import Changes
from tests.site import ASK, CHAT, Site
from tests.users import MemoryUser


async def asked(site: Site, user: MemoryUser, key: dict[str, str]) -> int:
    return (await user.ask("POST", CHAT, ASK, **key)).status


async def test_a_key_that_is_revoked_is_refused_on_a_connection_that_has_used_it() -> None:
    site = Site()
    key, other = site.make_key(), site.make_key()
    user = site.user()
    for _ in range(3):
        # No node is there: what matters is who may ask.
        assert await asked(site, user, key) == 404
    token = key["authorization"].removeprefix("Bearer ")
    row = replace(site.keys.rows[digest_of(token)], revoked_at=1.0)
    site.keys.rows[row.hash] = row
    site.authenticator.on_changes(Changes(2, False, [row]))
    assert await asked(site, user, key) == 401
    assert await asked(site, user, other) == 404
    assert await asked(site, user, key) == 401
