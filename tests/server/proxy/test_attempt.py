"""What an engine answers, and what reaches the client of an answer that breaks off."""

from __future__ import annotations

import asyncio
import json

import pytest

from fabric_server.proxy.answer_writer import WHOLE_ANSWER
from protocol.errors import Code
from tests.site import (
    ANSWER,
    DONE,
    STREAM,
    Site,
    ask,
    assert_ends_with_error,
    begin_stream,
    chunk,
    event,
    first_call,
    turns,
    usage_chunk,
)


async def test_an_engine_s_4xx_is_the_user_s_answer_and_not_tried_elsewhere() -> None:
    site = Site()
    nodes = [site.node(), site.node()]
    user = ask(site)
    call = (await asyncio.wait_for(first_call(nodes), 5))[0]
    body = b'{"error":{"message":"no such tool","type":"x","param":null,"code":null}}'
    call.answer(422, body)
    answer = await user.answer()
    assert (answer.status, answer.body) == (422, body)
    assert all(node.idle for node in nodes)
    entry = await site.entry()
    assert (entry.outcome, entry.status, entry.attempts) == ("engine_error", 422, 1)


async def test_an_answer_that_can_have_no_body_gets_none_whatever_the_node_sends() -> None:
    site = Site()
    node = site.node()
    user = ask(site)
    call = await node.call()
    call.head(204, ("content-length", "5"))
    call.data(b"oops!")
    call.end()
    answer = await user.answer()
    assert (answer.status, answer.body) == (204, b"")
    assert (await user.ask("GET", "/")).status == 200, "the connection is in step"
    assert user.received == b""


async def test_only_harmless_headers_of_a_node_get_through() -> None:
    site = Site()
    node = site.node()
    user = ask(site)
    call = await node.call()
    call.head(
        200,
        ("content-type", "application/json\r\nset-cookie: a=b"),
        ("content-language", "en\nx: y"),
        ("openai-processing-ms", "9000000"),
        ("retry-after", "1\0"),
        ("set-cookie", "a=b"),
        ("x-request-id", "mine"),
        ("connection", "close"),
        ("transfer-encoding", "chunked"),
        ("content-length", "9" * 5000),
        ("location", "x"),
        ("\r\nx: y", "z"),
    )
    call.data(b"{}")
    call.end()
    answer = await user.answer()
    assert (answer.status, answer.body) == (200, b"{}")
    assert set(answer.headers) == {
        "date",
        "x-request-id",
        "x-fabric-route",
        "openai-processing-ms",
        "openai-version",
        "content-length",
    }


@pytest.mark.parametrize("length", ["-1", "1_0", "0x10", "\u0661", "", "1" * 16, "nonsense"])
async def test_a_length_that_is_none_is_ignored(length: str) -> None:
    site = Site()
    node = site.node()
    user = ask(site)
    call = await node.call()
    call.head(200, ("content-length", length))
    call.data(ANSWER)
    call.end()
    answer = await user.answer()
    assert answer.body == ANSWER
    assert answer.headers["content-length"] == str(len(ANSWER)), "it was held whole"


@pytest.mark.parametrize("sent", [b"ab", b"x" * 40])
async def test_an_answer_of_another_length_than_announced_is_an_error(sent: bytes) -> None:
    site = Site()
    node = site.node()
    user = ask(site)
    call = await node.call()
    call.head(200, ("content-length", "30"))
    call.data(sent)
    call.end()
    answer = await user.answer()
    assert (answer.status, answer.code) == (502, "upstream_error")
    assert (await site.entry()).outcome == "failed"


@pytest.mark.parametrize("length", [WHOLE_ANSWER + 20_000, WHOLE_ANSWER - 20_000])
async def test_a_large_answer_of_another_length_than_announced_is_cut_off(length: int) -> None:
    site = Site()
    node = site.node()
    user = ask(site)
    call = await node.call()
    call.head(200, ("content-length", str(length + 1)))
    await call.all_data(b"x" * (WHOLE_ANSWER + 10_000))
    call.end()
    if length > WHOLE_ANSWER:  # it had begun to flow
        await user.end()
        assert user.aborted
    else:
        assert (await user.answer()).status == 502
    assert (await site.entry()).outcome == "failed"


# ── what is lost in the middle ────────────────────────────────────────────────────────────────


async def test_a_stream_lost_in_the_middle_ends_with_an_error_and_is_not_tried_again() -> None:
    site = Site()
    nodes = [site.node(), site.node()]
    user = ask(site, STREAM)
    call, first = await first_call(nodes)
    call.begin_stream()
    call.data(chunk("Hel") + chunk("lo")[:9])
    await user.until(b"Hel")
    first.vanish()
    answer = await user.answer()
    assert answer.body.startswith(chunk("Hel") + b'data: {"error"')
    assert_ends_with_error(answer.body, "upstream_lost")
    assert all(node.idle for node in nodes)
    entry = await site.entry()
    assert (entry.outcome, entry.status, entry.error, entry.attempts) == ("failed", 200, "lost", 1)
    assert (await user.ask("GET", "/")).status == 200, "the connection is in step"


async def test_a_stream_whose_node_is_lost_behind_its_terminal_marker_is_whole() -> None:
    site = Site()
    node = site.node()
    user = ask(site, STREAM)
    call = await node.call()
    call.begin_stream()
    call.data(chunk("Hel") + chunk(None) + usage_chunk(5, 7) + DONE)
    await user.until(DONE)
    node.vanish()
    assert (await user.answer()).body == chunk("Hel") + chunk(None) + DONE
    entry = await site.entry()
    assert (entry.outcome, entry.error, entry.completion_tokens) == ("ok", None, 7)
    assert site.taken() == 0


async def test_a_reason_to_finish_is_not_the_end_of_a_stream_whose_node_is_lost() -> None:
    site = Site()
    node = site.node()
    user = ask(site, STREAM)
    call = await node.call()
    call.begin_stream()
    call.data(chunk("Hel") + chunk(None))
    await user.until(chunk(None))
    node.vanish()
    assert_ends_with_error((await user.answer()).body, "upstream_lost")
    assert (await site.entry()).outcome == "failed"


async def test_an_event_of_which_half_has_gone_out_is_ended_before_the_error() -> None:
    site = Site()
    node = site.node()
    user = ask(site, STREAM)
    call = await node.call()
    call.begin_stream()
    await call.all_data(b"data: " + b"x" * 1_200_000)
    call.fail(Code.ENGINE_FAILED)
    assert_ends_with_error((await user.answer()).body, "upstream_lost")


async def test_an_unstreamed_answer_lost_in_the_middle_is_asked_for_again_as_a_whole() -> None:
    site = Site()
    nodes = [site.node(), site.node()]
    user = ask(site)
    call, first = await first_call(nodes)
    call.head(200, ("content-type", "application/json"), ("content-length", "100"))
    call.data(b'{"choices"')
    call.data(b":[")
    await turns(10)
    first.vanish()
    [second] = [node for node in nodes if node is not first]
    (await second.call()).answer(200, ANSWER)
    assert (await user.answer()).body == ANSWER
    entry = await site.entry()
    assert (entry.outcome, entry.attempts, entry.completion_tokens) == ("ok", 2, 7)


async def test_an_answer_too_large_to_be_kept_is_cut_when_it_is_lost_in_the_middle() -> None:
    site = Site()
    nodes = [site.node(), site.node()]
    user = ask(site)
    call, _ = await first_call(nodes)
    call.head(200, ("content-type", "application/json"), ("content-length", "1000000"))
    await call.all_data(b"x" * (WHOLE_ANSWER + 50_000))
    await user.until(b"xxx")
    call.fail(Code.ENGINE_FAILED)
    await user.end()
    assert user.aborted
    assert all(node.idle for node in nodes)
    assert (await site.entry()).outcome == "failed"


async def test_a_stream_that_just_ends_is_not_complete() -> None:
    site = Site()
    node = site.node()
    user, call = await begin_stream(site, node)
    call.end()
    assert_ends_with_error((await user.answer()).body, "incomplete")
    entry = await site.entry()
    assert (entry.outcome, entry.status) == ("incomplete", 200)


async def test_an_error_that_the_engine_tells_within_its_stream_passes_and_counts() -> None:
    site = Site()
    node = site.node()
    user, call = await begin_stream(site, node)
    error = {"message": "out of memory", "type": "server_error"}
    call.data(event({"error": error}) + DONE)
    call.end()
    answer = (await user.answer()).body
    assert answer.startswith(chunk("Hel"))
    assert answer.endswith(DONE)
    told = json.loads(answer[len(chunk("Hel")) : -len(DONE)].removeprefix(b"data: "))
    assert told == {"error": {**error, "param": None, "code": "engine_error"}}
    assert (await site.entry()).outcome == "failed"
