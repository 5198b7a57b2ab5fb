"""A client that hangs up stops the work and gives its slot back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from protocol.errors import Code
from tests.site import (
    ANSWER,
    ASK,
    CHAT,
    DONE,
    STREAM,
    Site,
    ask,
    chunk,
    event,
    usage_chunk,
)
from tests.users import request


@pytest.mark.parametrize("body", [ASK, STREAM])
@pytest.mark.parametrize("moment", ["asked", "head", "data"])
async def test_a_user_who_hangs_up_stops_the_work_and_the_slot_is_free_when_it_has_stopped(
    body: Any, moment: str
) -> None:
    site = Site()
    node = site.node()
    user = ask(site, body)
    call = await node.call()
    if moment != "asked":
        call.begin_stream()
    if moment == "data":
        call.data(chunk("Hel"))
        await user.until(b"Hel")
    user.hang_up()
    assert await call.stopped() == Code.CANCELLED
    entry = await site.entry()
    assert (entry.outcome, entry.attempts) == ("cancelled", 1)
    assert entry.status == (200 if moment == "data" else 499)
    assert node.engine.active == 1, "the engine may still be at it"
    call.confirm()
    await site.free()


async def test_a_user_who_hangs_up_when_all_has_come_had_a_whole_answer() -> None:
    """Clients close at ``[DONE]``, before the node has said that this was all."""
    site = Site()
    node = site.node()
    user = ask(site, STREAM)
    call = await node.call()
    call.begin_stream()
    call.data(chunk("Hel") + chunk(None) + usage_chunk(5, 7) + DONE)
    await user.until(DONE)
    user.hang_up()
    entry = await site.entry()
    assert (entry.outcome, entry.status, entry.error) == ("ok", 200, None)
    assert (entry.prompt_tokens, entry.completion_tokens) == (5, 7)
    await call.stopped()
    call.confirm()
    await site.free()


async def test_a_user_who_hangs_up_behind_an_error_in_the_stream_had_no_answer() -> None:
    site = Site()
    node = site.node()
    user = ask(site, STREAM)
    call = await node.call()
    call.begin_stream()
    call.data(chunk("Hel") + event({"error": {"message": "out of memory"}}) + DONE)
    await user.until(DONE)
    user.hang_up()
    assert (await site.entry()).outcome == "cancelled"
    await call.stopped()
    call.confirm()
    await site.free()


async def test_a_user_who_hangs_up_while_waiting_leaves_the_line() -> None:
    site = Site()
    node = site.node(slots=1)
    first, second = ask(site), ask(site)
    call = await node.call()
    while not site.admission.waiting:  # noqa: ASYNC110
        await asyncio.sleep(0)
    second.hang_up()
    call.answer(200, ANSWER)
    await first.answer()
    await site.gateway.active.wait_idle()
    assert site.admission.waiting == 0
    assert site.taken() == 0
    assert sorted(entry.outcome for entry in site.ledger) == ["cancelled", "ok"]


async def test_a_user_who_hangs_up_when_just_served_gives_the_slot_back() -> None:
    site = Site()
    node = site.node(slots=1)
    first, second = ask(site), ask(site)
    call = await node.call()
    while not site.admission.waiting:  # noqa: ASYNC110
        await asyncio.sleep(0)
    [key_id] = {row.id for row in site.keys.rows.values()}
    site.registry.release(node.engine, key_id)  # serves the second one …
    assert site.admission.waiting == 0
    second.hang_up()  # … which goes in the same turn
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert site.taken() == 0
    site.registry.take(node.engine, key_id, 0.0)  # what was given back for the first one above
    call.answer(200, ANSWER)
    assert (await first.answer()).status == 200
    assert site.taken() == 0


async def test_a_user_who_hangs_up_while_sending_stops_the_work() -> None:
    site = Site()
    node = site.node()
    user = site.user()
    body = b'{"model":"tiny","stream":false,"x":"%b"}' % (b"x" * 600_000)
    user.send(request("POST", CHAT, body, **site.key)[:400_000])
    call = await node.call()
    user.hang_up()
    assert await call.stopped() == Code.CANCELLED
    call.confirm()
    assert (await site.entry()).outcome == "cancelled"
    await site.free()


async def test_a_body_that_breaks_off_under_way_is_the_user_s_fault() -> None:
    site = Site()
    node = site.node()
    user = site.user()
    user.send(request("POST", CHAT, **site.key, transfer_encoding="chunked"))
    start = b'{"model":"tiny","stream":false,"messages":"' + b"x" * 300_000
    user.send(b"%x\r\n%b\r\n" % (len(start), start))
    call = await node.call()
    user.send(b"no chunk\r\n")
    answer = await user.answer()
    assert (answer.status, answer.code) == (400, "bad_request")
    assert await call.stopped() == Code.CANCELLED
    call.confirm()
    entry = await site.entry()
    assert (entry.outcome, entry.status, entry.error) == ("refused", 400, "bad_request")
    await site.free()
