"""Requests that the server makes itself, through a gateway with scripted nodes."""

from __future__ import annotations

import asyncio
import json
from itertools import count

import pytest

from fabric_server.auth.keys import Key
from fabric_server.jobs.internal_request import InternalClient, InternalRequest, InternalResponse
from fabric_server.routing.criteria import Priority
from protocol.errors import Code
from tests.site import ASK, CHAT, Site
from tests.users import request

KEY = Key("key_1", "acme", "job", "sk-fab-abc", False, frozenset({"tiny"}))


@pytest.fixture
async def site() -> Site:
    return Site()


def ask(site: Site, *, most: int = 1000, seconds: float = 60.0) -> asyncio.Task[InternalResponse]:
    numbers = count(1)
    client = InternalClient(site.public.handle, lambda: f"req_{next(numbers)}")
    return asyncio.create_task(
        client.send(
            InternalRequest(
                id=client.new_id(),
                key=KEY,
                path=CHAT,
                body=json.dumps(ASK).encode(),
                priority=Priority.LOW,
                timeout=seconds,
            ),
            max_bytes=most,
        )
    )


async def test_it_is_answered_as_its_user_would_be_and_is_in_the_ledger(site: Site) -> None:
    node = site.node()
    asking = ask(site)
    call = await node.call()
    assert json.loads(await call.whole_body()) == ASK
    call.answer(200, b'{"choices":[]}')
    answer = await asking
    assert (answer.status, answer.body, answer.code) == (200, b'{"choices":[]}', "")
    entry = await site.entry()
    assert (entry.key_id, entry.account, entry.request_id) == ("key_1", "acme", answer.request_id)
    assert entry.status == 200


async def test_an_answer_without_a_length_is_collected_without_its_framing(site: Site) -> None:
    node = site.node()
    asking = ask(site)
    call = await node.call()
    call.head(200, ("content-type", "application/json"))
    call.data(b'{"cho')
    call.data(b'ices":[]}')
    call.end()
    assert (await asking).body == b'{"choices":[]}'


async def test_an_answer_that_is_too_large_stops_its_engine(site: Site) -> None:
    node = site.node()
    asking = ask(site, most=300_000)
    call = await node.call()
    call.head(200, ("content-type", "application/json"))
    await call.all_data(b"x" * 700_000)
    assert await call.stopped() == Code.CANCELLED
    call.confirm()
    answer = await asking
    assert (answer.status, answer.code) == (502, "answer_too_large")
    await site.free()


async def test_an_answer_that_breaks_off_is_no_answer(site: Site) -> None:
    node = site.node()
    asking = ask(site, most=1_000_000)
    call = await node.call()
    call.head(200, ("content-type", "application/json"))
    await call.all_data(b"x" * 300_000)
    call.fail(Code.ENGINE_FAILED)
    answer = await asking
    assert (answer.status, answer.code) == (502, "upstream_error")


async def test_who_has_no_room_is_busy_and_says_when_to_come_back(site: Site) -> None:
    node = site.node(slots=1)
    node.node.drained = True
    answer = await ask(site)
    assert (answer.status, answer.code, answer.busy) == (503, "no_capacity", True)
    assert answer.retry_after is not None


async def test_cancelled_it_stops_its_engine(site: Site) -> None:
    node = site.node()
    asking = ask(site)
    call = await node.call()
    asking.cancel()
    assert await call.stopped() == Code.CANCELLED
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert (await site.entry()).outcome == "cancelled"


async def test_it_ends_when_its_key_is_withdrawn(site: Site) -> None:
    node = site.node()
    asking = ask(site)
    await node.call()
    site.gateway.active.cancel_key(KEY.id)
    answer = await asking
    assert (answer.status, answer.code) == (401, "key_withdrawn")


async def test_nothing_that_comes_from_a_network_is_taken_for_it(site: Site) -> None:
    user = site.user()
    user.send(request("POST", CHAT, ASK, key="key_1", **{"x-fabric-key": "key_1"}))
    answer = await user.answer()
    assert answer.status == 401
    assert site.ledger == []
