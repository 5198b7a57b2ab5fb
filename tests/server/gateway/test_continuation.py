"""A stream whose node is lost for good goes on at another one, if its user wants it to."""

from __future__ import annotations

import asyncio
import gc
import json
from typing import Any

import pytest

from fabric_server.edge.request import Request
from fabric_server.gateway.stream_keepalive import QUEUED_SECONDS
from fabric_server.proxy.attempt import Attempt
from fabric_server.proxy.transcript import Transcript
from protocol.errors import Code
from tests.site import (
    CHAT,
    DONE,
    PATIENT,
    STREAM,
    Call,
    ScriptedNode,
    Site,
    chunk,
    event,
    usage_chunk,
)
from tests.users import Answer, MemoryUser, request

CONTINUE = {"x-fabric-failover": "continue"}
SPLICE_COMMENT = b": continued on another node\n\n"
FIRST = {"id": "chatcmpl-1", "created": 1, "model": "tiny"}
SECOND = {"id": "chatcmpl-2", "created": 2, "model": "tiny-q4"}
ROLE = event({**SECOND, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
USAGE: Any = {**STREAM, "stream_options": {"include_usage": True}}


def ask(site: Site, body: Any = STREAM, path: str = CHAT, **headers: str) -> MemoryUser:
    user = site.user()
    user.send(request("POST", path, body, **{**site.key, **CONTINUE, **headers}))
    return user


async def begun(
    site: Site, body: Any = STREAM, *, said: bytes = chunk("Hel", **FIRST), **headers: str
) -> tuple[MemoryUser, Call, ScriptedNode]:
    """A stream of which something has come, and the node that it comes from."""
    user = ask(site, body, **headers)
    await turns()
    [node] = [node for node in site.nodes if not node.idle]
    call = await node.call()
    call.begin_stream()
    call.data(said)
    await user.until(said)
    return user, call, node


async def asked_next(site: Site) -> Call:
    await turns(20)
    [node] = [node for node in site.nodes if not node.idle]
    return await node.call()


async def turns(count: int = 10) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def text_of(answer: Answer) -> str:
    data = [part.removeprefix(b"data: ") for part in answer.body.split(b"\n\n")]
    chunks = [json.loads(part) for part in data if part.startswith(b"{")]
    assert not [part for part in chunks if "error" in part], answer.body
    deltas = [choice["delta"] for part in chunks for choice in part["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


def error_of(answer: Answer) -> str:
    assert answer.body.count(b'data: {"error"') == 1
    assert b"[DONE]" not in answer.body
    last = answer.body.removesuffix(b"\n\n").rpartition(b"\n\n")[2]
    code: str = json.loads(last.removeprefix(b"data: "))["error"]["code"]
    return code


async def test_a_rest_that_thinks_anew_and_comes_at_once_is_an_error_and_no_short_answer() -> None:
    site = Site()
    site.node(), site.node()
    user, _, first = await begun(site)
    first.vanish()
    rest = await asked_next(site)
    rest.begin_stream()
    rest.data(ROLE)  # what says nothing is enough for the rest to have begun
    await user.until(SPLICE_COMMENT)
    thought = {"index": 0, "delta": {"reasoning_content": "Hm."}}
    rest.data(event({**SECOND, "choices": [thought]}) + chunk("lo") + chunk(None) + DONE)
    rest.end()
    assert error_of(await user.answer()) == "upstream_lost"
    assert (await site.entry()).outcome == "failed"


async def test_a_stream_that_waits_for_its_rest_is_shown_as_answering() -> None:
    site = Site()
    site.node(), site.node()
    user, _, first = await begun(site)
    [record] = site.gateway.active.list()
    assert record.state == "answering"
    first.vanish()
    rest = await asked_next(site)
    assert record.attempts == 2
    assert record.state == "answering", "the rest has no byte yet, but its client has some"
    rest.stream_all(ROLE, chunk("lo"), chunk(None), DONE)
    assert text_of(await user.answer()) == "Hello"


async def test_the_rest_comes_from_another_node_and_it_is_one_stream() -> None:
    site = Site()
    site.node(), site.node()
    user, call, first = await begun(site, {**USAGE, "max_tokens": 50})
    call.data(chunk("lo", **FIRST)[:-9])  # half an event is nothing
    await turns()
    first.vanish()
    rest = await asked_next(site)
    asked = json.loads(await rest.whole_body())
    said = {"role": "assistant", "content": "Hel"}
    assert asked["messages"] == [*STREAM["messages"], said]
    assert (asked["max_tokens"], asked["continue_final_message"]) == (49, True)
    rest.stream_all(ROLE, chunk("lo", **SECOND), chunk(None, **SECOND), usage_chunk(8, 2), DONE)
    answer = await user.answer()
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    body = answer.body.replace(b": ", b":").replace(b", ", b",")
    expected = [
        chunk("Hel", **FIRST),
        SPLICE_COMMENT,
        chunk("lo", **FIRST),
        chunk(None, **FIRST),
        event({"choices": [], "usage": usage, **FIRST}),
        DONE,
    ]
    assert body == b"".join(expected).replace(b": ", b":").replace(b", ", b",")
    entry = await site.entry()
    assert (entry.outcome, entry.status, entry.error) == ("ok", 200, None)
    assert (entry.continued, entry.attempts) == (1, 2)
    assert (entry.prompt_tokens, entry.completion_tokens) == (7, 3)
    assert entry.node_id == rest_node(site, first).node.id
    assert entry.route == "the only one that can, 0/4 slots"
    assert site.metrics.continued == 1
    assert site.taken() == 0
    assert (await user.ask("GET", "/")).status == 200, "the connection is in step"


def rest_node(site: Site, first: ScriptedNode) -> ScriptedNode:
    [other] = [node for node in site.nodes if node is not first]
    return other


async def test_a_key_can_want_it_and_a_header_overrules_the_key() -> None:
    for header, goes_on in (None, True), ("off", False), ("Continue", True):
        site = Site()
        site.key = site.make_key(failover="continue")
        site.node(), site.node()
        user = site.user()
        headers = {} if header is None else {"x-fabric-failover": header}
        user.send(request("POST", CHAT, STREAM, **site.key, **headers))
        call = await asked_next(site)
        call.begin_stream()
        call.data(chunk("Hel"))
        await user.until(b"Hel")
        call.fail(Code.ENGINE_FAILED)
        if goes_on:
            (await asked_next(site)).stream_all(chunk("lo"), chunk(None), DONE)
            assert text_of(await user.answer()) == "Hello"
        else:
            assert error_of(await user.answer()) == "upstream_lost"
        assert (await site.entry()).continued == goes_on


@pytest.mark.parametrize("value", ["", "yes", "always"])
async def test_a_header_that_makes_no_sense_is_refused(value: str) -> None:
    site = Site()
    site.node()
    answer = await ask(site, **{"x-fabric-failover": value}).answer()
    assert (answer.status, answer.error["param"]) == (400, "x-fabric-failover")


@pytest.mark.parametrize("path", ["silence", "no end", "reset"])
async def test_however_the_first_node_is_lost(path: str) -> None:
    site = Site()
    site.node(), site.node()
    user, call, _ = await begun(site)
    if path == "silence":
        for part in range(1, 8):
            site.wait(PATIENT.idle * part / 4 + 1)
            await turns(2)
        assert await call.stopped() == Code.TIMEOUT
        call.confirm()
    elif path == "no end":
        call.end()
    else:
        call.fail(Code.LOST)
    (await asked_next(site)).stream_all(chunk("lo"), chunk(None), DONE)
    assert text_of(await user.answer()) == "Hello"
    assert (await site.entry()).continued == 1
    await site.free()


async def test_two_nodes_may_be_lost_and_not_three() -> None:
    site = Site()
    for _ in range(4):
        site.node()
    user, call, _ = await begun(site)
    call.fail(Code.LOST)
    second = await asked_next(site)
    second.begin_stream()
    second.data(ROLE + chunk("lo", **SECOND))
    await user.until(b'"lo"')
    second.fail(Code.LOST)
    third = await asked_next(site)
    asked = json.loads(await third.whole_body())
    assert asked["messages"][-1]["content"] == "Hello"
    third.begin_stream()
    third.data(chunk("!", **SECOND))
    await user.until(b'"!"')
    third.fail(Code.LOST)
    answer = await user.answer()
    assert error_of(answer) == "upstream_lost"
    assert answer.body.count(SPLICE_COMMENT) == 2
    entry = await site.entry()
    assert (entry.outcome, entry.continued, entry.attempts) == ("failed", 2, 3)


async def test_a_node_that_is_lost_before_it_could_go_on_is_replaced_too() -> None:
    site = Site()
    for _ in range(3):
        site.node()
    user, call, _ = await begun(site)
    call.fail(Code.LOST)
    (await asked_next(site)).fail(Code.ENGINE_DOWN)
    (await asked_next(site)).stream_all(chunk("lo"), chunk(None), DONE)
    answer = await user.answer()
    assert text_of(answer) == "Hello"
    assert answer.body.count(SPLICE_COMMENT) == 1
    entry = await site.entry()
    assert (entry.continued, entry.attempts) == (1, 3)


async def test_a_rest_waits_in_line_and_its_user_is_told() -> None:
    site = Site()
    site.node(slots=1), site.node(slots=1)
    user, call, _ = await begun(site)
    other = site.user()
    other.send(request("POST", CHAT, STREAM, **site.key))
    busy = await asked_next(site)
    call.fail(Code.LOST)
    await turns()
    assert site.admission.waiting == 1
    site.wait(QUEUED_SECONDS + 20)
    await user.until(b": queued, position 1\n\n")
    busy.stream_all(chunk("x"), chunk(None), DONE)
    (await asked_next(site)).stream_all(chunk("lo"), chunk(None), DONE)
    assert text_of(await user.answer()) == "Hello"
    await site.free()


async def test_without_another_node_the_user_is_told_that_it_was_lost() -> None:
    site = Site()
    site.node()
    user, call, _ = await begun(site)
    site.node(kind="openai")  # of which nobody knows whether it would go on
    call.fail(Code.LOST)
    assert error_of(await user.answer()) == "upstream_lost"
    entry = await site.entry()
    assert (entry.outcome, entry.error, entry.status) == ("failed", "lost", 200)
    assert (entry.continued, entry.attempts) == (0, 1)


@pytest.mark.parametrize("status", [400, 500])
async def test_an_engine_that_will_not_go_on_is_as_good_as_none(status: int) -> None:
    site = Site()
    site.node(), site.node()
    user, call, first = await begun(site)
    call.fail(Code.LOST)
    rest = await asked_next(site)
    rest.answer(status, b'{"error":{"message":"prefill is incompatible with enable_thinking"}}')
    answer = await user.answer()
    assert error_of(answer) == "upstream_lost"
    assert b"prefill" not in answer.body
    entry = await site.entry()
    assert (entry.outcome, entry.continued, entry.status) == ("failed", 0, 200)
    assert not rest_node(site, first).engine.breakers, "it was well"
    await site.free()


async def test_an_engine_that_thinks_anew_is_not_heard() -> None:
    site = Site()
    site.node(), site.node()
    user, call, _ = await begun(site)
    call.fail(Code.LOST)
    rest = await asked_next(site)
    rest.begin_stream()
    rest.data(event({**SECOND, "choices": [{"index": 0, "delta": {"reasoning": "Hm"}}]}))
    answer = await user.answer()
    assert error_of(answer) == "upstream_lost"
    assert b"Hm" not in answer.body
    assert await rest.stopped() == Code.CANCELLED
    rest.confirm()
    await site.free()


async def test_a_tool_call_ends_with_the_error_as_before() -> None:
    site = Site()
    site.node(), site.node()
    call = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f"}}
    said = event({**FIRST, "choices": [{"index": 0, "delta": {"tool_calls": [call]}}]})
    user, first, _ = await begun(site, said=said)
    first.fail(Code.LOST)
    assert error_of(await user.answer()) == "upstream_lost"
    assert (await site.entry()).attempts == 1


async def test_completions_of_plain_text_are_not_continued() -> None:
    site = Site()
    site.node(), site.node()
    body = {"model": "tiny", "prompt": "Hi", "stream": True}
    user = ask(site, body, "/v1/completions")
    call = await asked_next(site)
    call.begin_stream()
    call.data(event({"choices": [{"index": 0, "text": "Hel", "finish_reason": None}]}))
    await user.until(b"Hel")
    call.fail(Code.LOST)
    assert error_of(await user.answer()) == "upstream_lost"


async def test_a_user_who_hangs_up_at_the_splice_point_leaves_the_line() -> None:
    site = Site()
    site.node(slots=1), site.node(slots=1)
    user, call, _ = await begun(site)
    other = site.user()
    other.send(request("POST", CHAT, STREAM, **site.key))
    busy = await asked_next(site)
    call.fail(Code.LOST)
    await turns()
    user.hang_up()
    await turns()
    assert site.admission.waiting == 0
    [entry] = site.ledger
    assert (entry.outcome, entry.status, entry.continued) == ("cancelled", 200, 0)
    busy.stream_all(chunk("x"), chunk(None), DONE)
    await other.answer()
    await site.free()


async def test_a_key_withdrawn_at_the_splice_point_is_told_within_the_stream() -> None:
    site = Site()
    site.node(), site.node()
    user, call, _ = await begun(site)
    call.fail(Code.LOST)
    rest = await asked_next(site)
    [row] = site.keys.rows.values()
    site.gateway.active.cancel_key(row.id)
    assert error_of(await user.answer()) == "key_withdrawn"
    assert await rest.stopped() == Code.CANCELLED
    rest.confirm()
    await site.free()


@pytest.mark.parametrize("count", range(8))
async def test_a_key_withdrawn_in_whatever_turn_of_a_splice_is_told(count: int) -> None:
    site = Site()
    nodes = [site.node(), site.node()]
    user, call, _ = await begun(site)
    call.fail(Code.DRAINING)
    await turns(count)
    [row] = site.keys.rows.values()
    site.gateway.active.cancel_key(row.id)
    assert error_of(await user.answer()) == "key_withdrawn"
    assert (await site.entry()).outcome == "cancelled"
    await all_stopped(site, nodes)


@pytest.mark.parametrize("count", range(8))
async def test_a_user_who_hangs_up_in_whatever_turn_of_a_splice_leaves_nothing(count: int) -> None:
    site = Site()
    nodes = [site.node(), site.node()]
    user, call, _ = await begun(site)
    call.fail(Code.DRAINING)
    await turns(count)
    user.hang_up()
    assert (await site.entry()).outcome == "cancelled"
    await all_stopped(site, nodes)


async def all_stopped(site: Site, nodes: list[ScriptedNode]) -> None:
    await turns()
    for node in nodes:
        while not node.idle:
            call = await node.call()
            await call.stopped()
            call.confirm()
    await site.free()


async def test_an_answer_of_several_nodes_is_forgotten_without_the_garbage_collector() -> None:
    def left() -> int:
        kinds = (Attempt, Request, Transcript)
        return sum(isinstance(thing, kinds) for thing in gc.get_objects())

    site = Site()
    site.node(), site.node()
    gc.collect()
    gc.disable()
    try:
        before = left()
        for _ in range(5):
            user, call, _ = await begun(site)
            call.fail(Code.DRAINING)
            (await asked_next(site)).stream_all(chunk("lo"), chunk(None), DONE)
            assert text_of(await user.answer()) == "Hello"
            user.hang_up()
            del user, call
        await site.gateway.active.wait_idle()
        await turns()
        assert left() == before
    finally:
        gc.enable()


async def test_what_goes_on_draws_on_the_same_budget_as_retries() -> None:
    site = Site()
    told = []
    for _ in range(14):
        site.node(), site.node()
        user, call, _ = await begun(site)
        call.fail(Code.DRAINING)
        await turns(20)
        waiting = [node for node in site.nodes if not node.idle]
        for node in waiting:
            (await node.call()).stream_all(chunk("lo"), chunk(None), DONE)
        told.append(b"upstream_lost" not in (await user.answer()).body)
    assert told[:10] == [True] * 10
    assert not all(told)
