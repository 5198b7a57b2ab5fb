"""An engine that fails before its answer has begun is replaced by another."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from protocol.errors import Code
from tests.site import (
    ANSWER,
    ASK,
    CHAT,
    PATIENT,
    Site,
    ask,
    first_call,
)
from tests.users import request


async def test_a_5xx_is_tried_once_elsewhere_under_the_same_id() -> None:
    site = Site()
    nodes = [site.node(), site.node()]
    user = ask(site)
    call, first = await first_call(nodes)
    call.head(500)
    [second] = [node for node in nodes if node is not first]
    again = await second.call()
    assert again.request.request_id == call.request.request_id
    assert again.request.attempt == 2
    assert await again.whole_body() == json.dumps(ASK).encode()
    again.answer(200, ANSWER)
    assert (await user.answer()).body == ANSWER
    entry = await site.entry()
    assert (entry.outcome, entry.attempts, entry.error) == ("ok", 2, None)
    assert entry.node_id == second.node.id
    assert site.metrics.retries == 1
    assert await call.stopped() == Code.ENGINE_DOWN
    assert first.engine.active == 1, "its work may still be going on"
    call.confirm()
    await site.free()


async def test_a_5xx_passes_on_untouched_when_nobody_else_is_left() -> None:
    site = Site()
    nodes = [site.node(), site.node()]
    user = ask(site)
    call, first = await first_call(nodes)
    call.answer(500, b"broken")
    [second] = [node for node in nodes if node is not first]
    (await second.call()).answer(503, b"[busy]")
    answer = await user.answer()
    assert (answer.status, answer.body) == (503, b"[busy]")
    entry = await site.entry()
    assert (entry.outcome, entry.status, entry.attempts) == ("engine_error", 503, 2)


async def test_whether_somebody_else_is_left_is_asked_when_it_matters() -> None:
    site = Site()
    first, second = site.node(), site.node(slots=1)
    second.engine.active = 1  # taken by somebody
    user = ask(site)
    call = await first.call()
    second.engine.active = 0
    call.answer(500, b"broken")
    (await second.call()).answer(200, ANSWER)
    assert (await user.answer()).status == 200


@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream"])
@pytest.mark.parametrize("length", [(), (("content-length", "30"),)])
async def test_an_answer_that_ends_before_it_began_is_tried_elsewhere(
    content_type: str, length: tuple[tuple[str, str], ...]
) -> None:
    site = Site()
    nodes = [site.node(), site.node()]
    user = ask(site)
    call, first = await first_call(nodes)
    call.head(200, ("content-type", content_type), *length)
    call.end()
    [second] = [node for node in nodes if node is not first]
    (await second.call()).answer(200, ANSWER)
    assert (await user.answer()).status == 200


# ── what is lost before the first byte ────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "code", [Code.REFUSED, Code.ENGINE_DOWN, Code.ENGINE_FAILED, Code.DRAINING, Code.INTERNAL]
)
@pytest.mark.parametrize("after_head", [False, True])
async def test_what_a_node_gives_up_before_the_first_byte_another_answers(
    code: Code, after_head: bool
) -> None:
    site = Site()
    nodes = [site.node(), site.node()]
    user = ask(site)
    call, first = await first_call(nodes)
    if after_head:
        call.head(200, ("content-type", "application/json"))
    call.fail(code)
    [second] = [node for node in nodes if node is not first]
    (await second.call()).answer(200, ANSWER)
    assert (await user.answer()).body == ANSWER
    entry = await site.entry()
    assert (entry.outcome, entry.attempts, entry.node_id) == ("ok", 2, second.node.id)
    assert site.taken() == 0


async def test_a_node_that_dies_before_the_first_byte_is_replaced_by_another() -> None:
    site = Site()
    nodes = [site.node(), site.node()]
    user = ask(site)
    _, first = await first_call(nodes)
    first.vanish()
    [second] = [node for node in nodes if node is not first]
    (await second.call()).answer(200, ANSWER)
    assert (await user.answer()).status == 200
    assert (await site.entry()).attempts == 2
    assert first.engine.active == 0


async def test_a_node_that_loses_one_tunnel_before_the_first_byte_is_asked_again_on_another() -> (
    None
):
    site = Site()
    node = site.node()
    user = ask(site)
    await node.call()
    node.add_tunnel()
    node.cut(0)
    (await node.call()).answer(200, ANSWER)
    assert (await user.answer()).status == 200
    assert (await site.entry()).attempts == 2
    assert node.engine.active == 0


async def test_a_node_that_loses_tunnel_after_tunnel_is_asked_three_times() -> None:
    site = Site()
    node = site.node()
    user = ask(site)
    for number in range(3):
        await node.call()
        node.add_tunnel()
        node.cut(number)
    assert (await user.answer()).status == 502
    assert (await site.entry()).attempts == 3
    assert node.idle


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        (Code.REFUSED, 503, "no_capacity"),
        (Code.DRAINING, 503, "no_capacity"),
        (Code.ENGINE_DOWN, 502, "upstream_error"),
        (Code.FORBIDDEN, 502, "upstream_error"),
        (Code.TIMEOUT, 504, "upstream_timeout"),
        (Code.CANCELLED, 502, "upstream_error"),
        (Code.TOO_LARGE, 502, "upstream_error"),
        (999, 502, "upstream_error"),
    ],
)
async def test_without_another_node_the_user_is_told_what_was_wrong(
    code: int, status: int, error: str
) -> None:
    site = Site()
    node = site.node()
    node.refuses = code
    user = ask(site)
    answer = await user.answer()
    assert (answer.status, answer.code) == (status, error)
    entry = await site.entry()
    assert entry.outcome == ("timeout" if code == Code.TIMEOUT else "failed")
    assert (entry.status, entry.attempts, entry.error) == (status, 1, Code.name_of(code))
    assert site.taken() == 0


async def test_a_request_is_tried_three_times_and_not_four_times() -> None:
    site = Site()
    for _ in range(4):
        site.node().refuses = Code.ENGINE_DOWN
    answer = await ask(site).answer()
    assert answer.status == 502
    assert (await site.entry()).attempts == 3


async def test_retries_never_become_the_load() -> None:
    """When everything fails, a tenth of the requests is tried again, and a few at the beginning."""
    site = Site()
    for _ in range(4):
        site.node(slots=64).refuses = Code.LOST
    for _ in range(200):
        assert (await ask(site).answer()).status == 502
    attempts = sum(entry.attempts for entry in site.ledger)
    assert 200 + 20 <= attempts <= 200 + 20 + 10


async def test_a_node_that_stalls_is_waited_for_when_there_is_no_other() -> None:
    site = Site(timeouts=replace(PATIENT, stall=5.0, first_byte=60.0))
    node = site.node()
    user = ask(site)
    call = await node.call()
    site.wait(30.0)
    call.answer(200, ANSWER)
    assert (await user.answer()).status == 200


async def test_a_stalled_node_is_given_up_when_its_time_is_over() -> None:
    site = Site(timeouts=replace(PATIENT, stall=5.0, first_byte=60.0))
    node = site.node()
    user = ask(site)
    call = await node.call()
    site.wait(61.0)
    assert (await user.answer()).code == "upstream_timeout"
    call.confirm()
    await site.free()


async def test_a_body_that_was_not_kept_is_not_sent_twice() -> None:
    site = Site()
    nodes = [site.node(), site.node()]
    user = site.user()
    body = b'{"model":"tiny","stream":false,"x":"%b"}' % (b"x" * 600_000)
    user.send(request("POST", CHAT, body, **site.key)[:400_000])
    call, _ = await first_call(nodes)
    call.fail(Code.ENGINE_DOWN)
    assert (await user.answer()).status == 502
    assert (await site.entry()).attempts == 1
