"""Wrong keys on the public port: who sends many waits, and who shares the address does not."""

from __future__ import annotations

import asyncio
import time
from functools import partial

from fabric_server.auth.keys import mint
from fabric_server.net.addresses import parse
from fabric_server.net.connection_budget import Budget, Peer, Places
from fabric_server.net.failure_throttle import FailureThrottle, ThrottleLimits
from fabric_server.net.trusted_proxies import TrustedProxies
from tests.site import ASK, CHAT, PATIENCE, Site
from tests.users import MemoryUser, request

MODELS = "/v1/models"
ADDRESS = "203.0.113.9"
PROXIES = TrustedProxies(["10.0.0.0/8"])


class Port:
    """A public port whose clients have addresses."""

    def __init__(self, **limits: float) -> None:
        # Nothing in these tests lasts so long: an answer that is held back does not come.
        self.throttle = FailureThrottle(ThrottleLimits(per_second=0.001, longest=60.0, **limits))
        self.site = Site(throttle=self.throttle)
        self.suspected: list[str] = []
        self.budget = Budget(
            Places(1000, 1000),
            lambda reason, peer: None,
            on_suspect=lambda peer: self.suspected.append(str(peer.ip)),
        )

    def user(self, address: str = ADDRESS) -> MemoryUser:
        peer = Peer(parse(address), PROXIES, self.budget)
        assert peer.enter() is None
        return MemoryUser(partial(self.site.edge, peer))

    async def guess(self, user: MemoryUser, **headers: str) -> int:
        """The status of the answer to a key that does not exist."""
        key = {"authorization": f"Bearer {mint('x', now=time.time()).text}"}
        return (await user.ask("POST", CHAT, ASK, **key, **headers)).status

    async def begin(self, user: MemoryUser, **headers: str) -> None:
        """Send a key that does not exist, whose answer is held back."""
        held = self.throttle.held.total()
        key = {"authorization": f"Bearer {mint('x', now=time.time()).text}"}
        user.send(request("POST", CHAT, ASK, **key, **headers))
        async with asyncio.timeout(PATIENCE):
            while self.throttle.held.total() == held:  # noqa: ASYNC110 - some turns of the loop
                await asyncio.sleep(0)


async def test_a_valid_key_is_never_held_back_whether_it_was_used_before_or_not() -> None:
    port = Port(burst=2.0)
    before = await port.user().ask("GET", MODELS, **port.site.key)
    assert before.status == 200
    assert [await port.guess(port.user()) for _ in range(2)] == [401, 401]
    guessers = [port.user() for _ in range(40)]
    for guesser in guessers:
        await port.begin(guesser)
    assert (await port.user().ask("GET", MODELS, **port.site.key)).status == 200
    unused = port.site.make_key()
    assert (await port.user().ask("GET", MODELS, **unused)).status == 200
    assert not any(guesser.received for guesser in guessers)
    for guesser in guessers:
        guesser.hang_up()
    assert port.throttle.held["api_key"] == 40


async def test_requests_without_a_key_or_with_a_malformed_one_count_as_well() -> None:
    port = Port(burst=4.0)
    user = port.user()
    for headers in ({}, {"authorization": "Bearer x"}, {"x-api-key": "x" * 9000}):
        assert (await user.ask("POST", CHAT, ASK, **headers)).status == 401
        assert (await port.user("203.0.113.8").ask("GET", MODELS, **headers)).status == 401
    assert (await user.ask("POST", "/v1/messages", ASK)).status == 401
    assert port.throttle.failures["api_key"] == 7
    assert port.throttle.held["api_key"] == 0
    await port.begin(user)
    user.hang_up()


async def test_what_is_no_failure_to_authenticate_does_not_count() -> None:
    port = Port(burst=2.0)
    user = port.user()
    manager = port.site.make_key(management=True)
    for _ in range(5):
        assert (await user.ask("GET", "/nothing")).status == 404
        assert (await user.ask("POST", CHAT, b"{", **port.site.key)).status == 400
        assert (await user.ask("POST", CHAT, ASK, **manager)).status == 403
    assert port.throttle.failures.total() == 0


async def test_a_held_answer_ends_with_its_connection() -> None:
    port = Port(burst=0.0)
    user = port.user()
    await port.begin(user)
    assert len(asyncio.all_tasks()) == 2
    user.hang_up()
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(asyncio.all_tasks()) == 1


async def test_behind_a_trusted_proxy_each_client_counts_for_themselves() -> None:
    port = Port(burst=2.0)
    proxy = "10.0.0.1"
    mine = {"x-forwarded-for": "198.51.100.1, 203.0.113.9"}
    for _ in range(2):
        assert await port.guess(port.user(proxy), **mine) == 401
    held = port.user(proxy)
    await port.begin(held, **mine)
    other = {"x-forwarded-for": "203.0.113.10"}
    assert await port.guess(port.user(proxy), **other) == 401
    answer = await port.user(proxy).ask("GET", MODELS, **port.site.key, **mine)
    assert answer.status == 200
    assert port.suspected == []  # the kernel sees the proxy, which has others behind it
    held.hang_up()


async def test_many_wrong_keys_are_reported_unless_a_valid_one_came_from_there_lately() -> None:
    port = Port(burst=1.0)
    office = "198.51.100.20"
    colleague = port.user(office)
    assert (await colleague.ask("GET", MODELS, **port.site.key)).status == 200
    colleague.hang_up()
    for address in (office, ADDRESS):
        assert await port.guess(port.user(address)) == 401
        user = port.user(address)
        await port.begin(user)
        user.hang_up()
    assert port.suspected == [ADDRESS]
