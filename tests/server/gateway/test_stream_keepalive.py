"""What a user whose answer has not begun is told meanwhile, and what comes of it after that."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from fabric_server.gateway.stream_keepalive import AGAIN_SECONDS, LOADING_SECONDS, QUEUED_SECONDS
from protocol.errors import Code
from tests.site import ASK, CHAT, DONE, LIMITS, PATIENT, STREAM, Call, ScriptedNode, Site, chunk
from tests.users import Answer, MemoryUser, request

QUEUED = b": queued, position 1\n\n"
LOADING = b": waiting for the model\n\n"
ANSWER = chunk("Hi") + chunk(None) + DONE


def ask(site: Site, body: Any = STREAM, **headers: str) -> MemoryUser:
    user = site.user()
    user.send(request("POST", CHAT, body, **(site.key | headers)))
    return user


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def loading(site: Site, node: ScriptedNode) -> tuple[MemoryUser, Call]:
    """A stream whose engine is silent, and whose user has been told so."""
    user = ask(site)
    call = await node.call()
    site.wait(LOADING_SECONDS + 1)
    await user.until(LOADING)
    return user, call


def error_of(answer: Answer) -> Any:
    """Of a stream that has begun with comments only."""
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/event-stream"
    comments, mark, last = answer.body.partition(b"data: ")
    assert all(line.startswith(b":") for line in comments.split(b"\n") if line)
    assert mark
    assert last.endswith(b"\n\n")
    assert last.count(b"\n") == 2, "one event, and no [DONE]"
    error = json.loads(last)
    assert list(error) == ["error"]
    return error["error"]


# ── in line ───────────────────────────────────────────────────────────────────────────────────


async def test_who_waits_is_told_where_and_that_again_and_again() -> None:
    site = Site()
    node = site.node(slots=1)
    first = ask(site, ASK)
    call = await node.call()
    second, third = ask(site), ask(site)
    await turns()
    site.wait(QUEUED_SECONDS - 0.5)
    await turns()
    assert not second.received, "an error would have a status of its own until now"
    site.wait(QUEUED_SECONDS + 0.1)
    await second.until(QUEUED)
    head, _, _ = bytes(second.received).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    for name in (b"x-request-id: req_", b"cache-control: no-cache", b"x-accel-buffering: no"):
        assert b"\r\n" + name in head
    await third.until(b": queued, position 2\n\n")
    site.wait(QUEUED_SECONDS + AGAIN_SECONDS + 0.2)
    await turns()
    assert bytes(second.received).count(QUEUED) == 2
    call.answer(200, b"{}")
    (await node.call()).stream_all(ANSWER)
    answer = await second.answer()
    assert answer.body == QUEUED * 2 + ANSWER
    (await node.call()).stream_all(ANSWER)
    assert (await third.answer()).body.endswith(ANSWER)
    assert (await first.answer()).body == b"{}"
    assert [entry.outcome for entry in site.ledger] == ["ok"] * 3
    assert [entry.status for entry in site.ledger] == [200] * 3


@pytest.mark.parametrize("body", [ASK, {**ASK, "stream": False}])
async def test_who_asked_for_no_stream_is_told_nothing(body: Any) -> None:
    site = Site()
    node = site.node(slots=1)
    await_first = ask(site)
    await node.call()
    user = ask(site, body)
    await turns()
    site.wait(QUEUED_SECONDS + 100)
    await turns()
    assert not user.received
    for one in (user, await_first):
        one.hang_up()


async def test_a_wait_that_was_in_vain_is_told_within_the_stream() -> None:
    site = Site()
    node = site.node(slots=1)
    ask(site)
    await node.call()
    user = ask(site, x_fabric_timeout="0.05")
    await turns()
    site.wait(QUEUED_SECONDS + 0.1)
    error = error_of(await user.answer())
    assert error["code"] == "queue_timeout"
    [entry] = site.ledger
    assert (entry.status, entry.outcome, entry.error) == (200, "refused", "queue_timeout")
    assert entry.queue_ms >= 40
    assert site.metrics.errors["queue_timeout"] == 1


async def test_the_connection_goes_on_after_an_error_within_a_stream() -> None:
    site = Site()
    node = site.node(slots=1)
    ask(site)
    call = await node.call()
    user = ask(site, x_fabric_timeout="0.05")
    await turns()
    site.wait(QUEUED_SECONDS + 0.1)
    error_of(await user.answer())
    call.stream_all(ANSWER)
    user.send(request("POST", CHAT, STREAM, **site.key))
    (await node.call()).stream_all(ANSWER)
    assert (await user.answer()).body == ANSWER


async def test_who_hangs_up_after_comments_leaves_the_line() -> None:
    site = Site()
    node = site.node(slots=1)
    first = ask(site)
    await node.call()
    user = ask(site)
    await turns()
    site.wait(QUEUED_SECONDS + 0.1)
    await user.until(QUEUED)
    user.hang_up()
    await turns()
    assert site.admission.waiting == 0
    [entry] = site.ledger
    assert (entry.status, entry.outcome) == (200, "cancelled")
    first.hang_up()


async def test_who_does_not_read_is_told_nothing_more() -> None:
    site = Site()
    node = site.node(slots=1)
    first = ask(site)
    await node.call()
    user = ask(site)
    await turns()
    user.stop_reading()
    site.wait(QUEUED_SECONDS + 0.1)
    await turns()
    assert not user.received
    user.read_on()
    site.wait(QUEUED_SECONDS + AGAIN_SECONDS + 0.2)
    await user.until(QUEUED)
    for one in (first, user):
        one.hang_up()


async def test_who_is_still_asking_is_told_nothing() -> None:
    site = Site()
    node = site.node(slots=1)
    first = ask(site)
    await node.call()
    data = request("POST", CHAT, {**STREAM, "x": "x" * 300_000}, **site.key)
    user = site.user()
    user.send(data[:-1])
    await site.queued(1)
    site.wait(QUEUED_SECONDS + 0.1)
    await turns()
    assert not user.received
    first.hang_up()
    user.hang_up()


async def test_a_key_withdrawn_after_comments_is_told_within_the_stream() -> None:
    site = Site()
    user, call = await loading(site, site.node())
    [row] = site.keys.rows.values()
    site.gateway.active.cancel_key(row.id)
    assert error_of(await user.answer())["code"] == "key_withdrawn"
    assert await call.stopped() == Code.CANCELLED
    call.confirm()
    await site.free()


# ── while the model loads ─────────────────────────────────────────────────────────────────────


async def test_an_engine_may_be_silent_for_a_while_before_its_user_is_told() -> None:
    site = Site()
    node = site.node()
    user = ask(site)
    call = await node.call()
    site.wait(QUEUED_SECONDS + 1)
    await turns()
    site.wait(LOADING_SECONDS - 1)
    await turns()
    assert not user.received
    site.wait(LOADING_SECONDS + 0.1)
    await user.until(LOADING)
    call.stream_all(ANSWER)
    assert (await user.answer()).body == LOADING + ANSWER
    entry = await site.entry()
    assert (entry.outcome, entry.status) == ("ok", 200)


async def test_another_node_is_tried_after_comments_too() -> None:
    site = Site()
    nodes = [site.node(), site.node()]
    user = ask(site)
    await turns()
    first, second = sorted(nodes, key=lambda node: node.idle)
    call = await first.call()
    site.wait(LOADING_SECONDS + 1)
    await user.until(LOADING)
    call.fail(Code.ENGINE_DOWN)
    (await second.call()).stream_all(ANSWER)
    assert (await user.answer()).body == LOADING + ANSWER
    entry = await site.entry()
    assert (entry.outcome, entry.attempts, entry.status) == ("ok", 2, 200)


@pytest.mark.parametrize(
    ("code", "told", "outcome"),
    [
        (Code.ENGINE_DOWN, "upstream_error", "failed"),
        (Code.TIMEOUT, "upstream_timeout", "timeout"),
        (Code.REFUSED, "no_capacity", "failed"),
    ],
)
async def test_what_fails_after_comments_is_told_within_the_stream(
    code: Code, told: str, outcome: str
) -> None:
    site = Site()
    user, call = await loading(site, site.node())
    call.fail(code)
    assert error_of(await user.answer())["code"] == told
    entry = await site.entry()
    assert (entry.outcome, entry.status) == (outcome, 200)
    assert entry.error == Code.name_of(code)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "too long"}}', "too long"),
        (b'{\n  "error": {\r\n    "message": "too long"\n  }\n}\n', "too long"),
        (b"<html>Bad</html>", "The engine answered with an error that can't be shown here."),
        (b'{"detail": "x"}', "The engine answered with an error that can't be shown here."),
        (b'{"error": "' + b"x" * 70_000, "The engine answered with an error that can't be shown"),
        (b"", "The engine answered with an error that can't be shown here."),
    ],
)
async def test_an_engine_s_own_error_after_comments_is_an_event(body: bytes, message: str) -> None:
    site = Site()
    user, call = await loading(site, site.node())
    call.head(400, ("content-type", "application/json"), ("content-length", str(len(body))))
    await call.all_data(body)
    call.end()
    assert error_of(await user.answer())["message"].startswith(message)
    entry = await site.entry()
    assert (entry.outcome, entry.status) == ("engine_error", 200)
    await site.free()


async def test_an_engine_lost_in_the_middle_of_its_error_is_told_too() -> None:
    site = Site()
    user, call = await loading(site, site.node())
    call.head(400, ("content-type", "application/json"), ("content-length", "100"))
    call.data(b'{"error": {"mess')
    await turns()
    call.fail(Code.ENGINE_FAILED)
    assert error_of(await user.answer())["code"] == "upstream_error"
    entry = await site.entry()
    assert (entry.outcome, entry.status) == ("failed", 200)


async def test_a_whole_answer_in_place_of_the_stream_that_was_begun_is_an_error() -> None:
    site = Site()
    user, call = await loading(site, site.node())
    call.answer(200, b'{"choices": []}')
    assert error_of(await user.answer())["code"] == "upstream_error"
    entry = await site.entry()
    assert (entry.outcome, entry.error, entry.status) == ("failed", "engine_failed", 200)


async def test_an_empty_whole_answer_in_its_place_is_one_too() -> None:
    site = Site()
    user, call = await loading(site, site.node())
    call.answer(200, b"")
    assert error_of(await user.answer())["code"] == "upstream_error"


async def test_a_server_that_drains_closes_after_the_answer() -> None:
    site = Site()
    user, call = await loading(site, site.node())
    site.edge.drain()
    call.stream_all(ANSWER)
    assert (await user.answer()).body == LOADING + ANSWER
    await user.end()


# ── request options ─────────────────────────────────────────────────────────────────────────────


async def test_a_priority_is_asked_for_by_header() -> None:
    site = Site()
    node = site.node(slots=1)
    ask(site, ASK)
    call = await node.call()
    users, key = [], site.make_key(priority="high")
    for name in ("low", "medium", "High"):
        users.append(ask(site, {**ASK, "is": name}, **key, x_fabric_priority=name))
        await turns()
    for name in ("High", "medium", "low"):
        call.answer(200, b"{}")
        call = await node.call()
        assert json.loads(await call.whole_body())["is"] == name
    call.answer(200, b"{}")
    for user in users:
        assert (await user.answer()).status == 200


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-fabric-priority", "urgent"),
        ("x-fabric-priority", ""),
        ("x-fabric-timeout", "0"),
        ("x-fabric-timeout", "-1"),
        ("x-fabric-timeout", "nan"),
        ("x-fabric-timeout", "soon"),
        ("x-fabric-timeout", ""),
        ("x-fabric-region", ""),
        ("x-fabric-region", "eu-west,"),
        ("x-fabric-region", "*"),
        ("x-fabric-region", "r" * 65),
        ("x-fabric-region", ",".join(f"r{number}" for number in range(17))),
        ("x-fabric-reasoning", "cooked"),
        ("x-fabric-reasoning", ""),
    ],
)
async def test_a_header_that_makes_no_sense_is_refused(name: str, value: str) -> None:
    site = Site()
    site.node()
    answer = await ask(site, **{name: value}).answer()
    assert (answer.status, answer.code) == (400, "invalid_value")
    assert answer.error["param"] == name
    entry = await site.entry()
    assert (entry.outcome, entry.model) == ("refused", "tiny")


@pytest.mark.parametrize(
    ("policy", "header", "told"),
    [
        ("", None, None),
        ("", "Raw", "raw"),
        ("", "split", None),
        ("raw", None, "raw"),
        ("raw", "split", None),
    ],
)
async def test_a_node_is_told_when_reasoning_is_to_stay_as_it_is(
    policy: str, header: str | None, told: str | None
) -> None:
    site = Site()
    node = site.node()
    key = site.make_key(reasoning=policy)
    ask(site, ASK, **key, **({} if header is None else {"x-fabric-reasoning": header}))
    call = await node.call()
    assert dict(call.request.headers).get("x-fabric-reasoning") == told
    call.answer(200, b"{}")


async def test_a_user_s_timeout_bounds_the_first_byte_and_the_whole_answer() -> None:
    site = Site()
    node = site.node()
    slow = ask(site, ASK, x_fabric_timeout="20")
    call = await node.call()
    site.wait(21)
    answer = await slow.answer()
    assert (answer.status, answer.code) == (504, "upstream_timeout")
    assert await call.stopped() == Code.TIMEOUT
    call.confirm()
    user = ask(site, x_fabric_timeout="20")
    call = await node.call()
    call.begin_stream()
    call.data(chunk("Hel"))
    await user.until(b"Hel")
    site.wait(19)
    await turns()
    assert call.reset is None
    site.wait(21)
    assert await call.stopped() == Code.TIMEOUT
    assert b'"error"' in (await user.answer()).body


async def test_a_user_s_timeout_holds_while_the_request_is_still_being_sent() -> None:
    site = Site(limits=replace(LIMITS, body_rate=1))
    node = site.node()
    body = {**ASK, "stream": False, "x": "x" * 300_000}
    data = request("POST", CHAT, body, **site.key, x_fabric_timeout="20")
    user = site.user()
    user.send(data[:-100])
    call = await node.call()
    user.send(data[-100:-20])
    await turns()
    site.wait(19)
    await turns()
    assert call.reset is None
    site.wait(21)
    assert await call.stopped() == Code.TIMEOUT
    assert (await user.answer()).status == 504
    call.confirm()
    await site.free()


async def test_a_user_s_timeout_can_t_be_longer_than_the_server_s() -> None:
    site = Site()
    node = site.node()
    user = ask(site, ASK, x_fabric_timeout="1e9")
    call = await node.call()
    site.wait(PATIENT.first_byte + 1)
    assert (await user.answer()).status == 504
    assert await call.stopped() == Code.TIMEOUT
