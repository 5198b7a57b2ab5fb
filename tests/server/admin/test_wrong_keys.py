"""Wrong secrets on the API port: who sends many waits, and who shares the address does not."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

import pytest

from fabric_client.registration.join import join
from fabric_server.admin.server import SHUTDOWN_SECONDS
from fabric_server.auth.keys import mint
from fabric_server.net.failure_throttle import FailureThrottle, ThrottleLimits
from tests.server.admin.server import NOBODY, Server, figures, until

GUESS = "mk-fab-" + "x" * 43
NEVER = ThrottleLimits(burst=2.0, per_second=0.001, longest=60.0)
"""Nothing in these tests lasts so long: an answer that is held back does not come."""


@pytest.fixture
def throttle(server: Server) -> FailureThrottle:
    server.app.data_plane.throttle.limits = NEVER
    return server.app.data_plane.throttle


async def test_a_management_key_is_never_held_back_whether_it_was_used_before_or_not(
    server: Server, throttle: FailureThrottle
) -> None:
    unused = mint("unused", now=time.time(), management=True)
    await server.app.backends.store.create_key(unused.row)
    for key in (GUESS, NOBODY):
        assert (await server.get("/api/v1/nodes", key=key)).status == 401
    guesses = [asyncio.create_task(server.get("/metrics", key=GUESS)) for _ in range(20)]
    await until(lambda: throttle.held["management_key"] == 20)
    assert (await server.get("/api/v1/nodes")).status == 200
    assert (await server.get("/api/v1/nodes", key=unused.text)).status == 200
    assert (await server.get("/health/live", key=NOBODY)).status == 200
    assert (await server.get("/api/v1/nodes", key=server.user)).status == 403
    assert await server.public("/v1/models", server.user) == 200
    assert not any(guess.done() for guess in guesses)
    seen = await figures(server)
    assert seen["fabric_authentication_failures_total", "management_key"] == 22
    assert seen["fabric_authentication_failures_held_total", "management_key"] == 20
    assert seen["fabric_authentication_failures_total", "api_key"] == 0
    await _give_up(*guesses)


async def test_an_invitation_is_never_held_back_however_many_wrong_ones_come(
    server: Server, throttle: FailureThrottle
) -> None:
    token = (await server.post("/api/v1/invitations", {"name": "attic"})).body["token"]
    wrong = {"secret": "A" * 43, "csr": "", "name": "x"}
    for _ in range(2):
        assert (await server.post("/api/v1/enrol", wrong, key=NOBODY)).status in (400, 403)
    guesses = [
        asyncio.create_task(server.post("/api/v1/enrol", wrong, key=NOBODY)) for _ in range(40)
    ]
    await until(lambda: throttle.held["invitation"] == 40)
    identity = await join(token, server.directory / "node", name="attic")
    assert await server.app.backends.store.node(identity.node_id) is not None
    assert not any(guess.done() for guess in guesses)
    await _give_up(*guesses)


async def test_nothing_is_left_of_a_held_answer_when_its_client_hangs_up(
    server: Server, throttle: FailureThrottle
) -> None:
    for _ in range(2):
        assert (await server.get("/metrics", key=GUESS)).status == 401
    before = len(asyncio.all_tasks())
    guesses = [asyncio.create_task(server.get("/metrics", key=GUESS)) for _ in range(10)]
    await until(lambda: throttle.held["management_key"] == 10)
    await _give_up(*guesses)
    await until(lambda: len(asyncio.all_tasks()) <= before)


async def test_held_answers_do_not_delay_the_servers_stop(
    server: Server, throttle: FailureThrottle
) -> None:
    for _ in range(2):
        assert (await server.get("/metrics", key=GUESS)).status == 401
    guess = asyncio.create_task(server.get("/metrics", key=GUESS))
    await until(lambda: throttle.held["management_key"] == 1)
    async with asyncio.timeout(SHUTDOWN_SECONDS / 2):
        await server.app.admin.close()
        assert (await guess).status == 401


async def _give_up(*guesses: asyncio.Task[object]) -> None:
    for guess in guesses:
        guess.cancel()
        with suppress(asyncio.CancelledError):
            await guess
