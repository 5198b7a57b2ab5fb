"""What a request is charged when its engine does not tell its tokens."""

from __future__ import annotations

import json
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
    first_call,
    turns,
    usage_chunk,
)

MESSAGES = "/v1/messages"
RESPONSES = "/v1/responses"
OLLAMA = "/api/chat"


def _message(text: str) -> bytes:
    delta = {"type": "text_delta", "text": text}
    return event({"type": "content_block_delta", "index": 0, "delta": delta})


def _response(text: str) -> bytes:
    return event({"type": "response.output_text.delta", "delta": text})


def _line(text: str) -> bytes:
    return json.dumps({"message": {"content": text}, "done": False}).encode() + b"\n"


START = event(
    {"type": "message_start", "message": {"usage": {"input_tokens": 9, "output_tokens": 1}}}
)
STREAMS: list[tuple[str, dict[str, Any], str, list[bytes]]] = [
    (CHAT, {}, "text/event-stream", [chunk("word")] * 40),
    (CHAT, {"stream_options": {"include_usage": True}}, "text/event-stream", [chunk("word")] * 40),
    ("/v1/completions", {"prompt": "Hi"}, "text/event-stream", [chunk("word")] * 40),
    (MESSAGES, {"max_tokens": 99}, "text/event-stream", [START, *[_message("word")] * 40]),
    (RESPONSES, {"input": "Hi"}, "text/event-stream", [_response("word")] * 40),
    (OLLAMA, {}, "application/x-ndjson", [_line("word")] * 40),
]


@pytest.mark.parametrize(("path", "more", "kind", "events"), STREAMS)
async def test_who_hangs_up_before_the_usage_pays_for_what_has_passed(
    path: str, more: dict[str, Any], kind: str, events: list[bytes]
) -> None:
    site = Site()
    node = site.node(paths=[path])
    user = ask(site, {**STREAM, **more}, path)
    call = await node.call()
    call.head(200, ("content-type", kind))
    for one in events:
        call.data(one)
    await user.until(events[-1][-12:])
    user.hang_up()
    await call.stopped()
    entry = await site.entry()
    assert (entry.outcome, entry.estimated) == ("cancelled", True)
    assert entry.completion_tokens is not None
    assert 40 <= entry.completion_tokens <= 45
    assert entry.prompt_tokens is not None
    assert 1 <= entry.prompt_tokens <= 9
    assert site.metrics.estimated == 1


async def test_a_limit_of_tokens_holds_against_who_hangs_up_again_and_again() -> None:
    site = Site()
    node = site.node()
    key = site.make_key(tokens_per_minute=30)
    read = 0
    for _ in range(30):
        user = ask(site, STREAM, **key)
        await turns(20)
        if user.received:
            break
        call = await node.call()
        call.begin_stream()
        for _ in range(20):
            call.data(chunk("word"))
        call.data(chunk("last"))
        await user.until(b"last")
        user.hang_up()
        await call.stopped()
        call.confirm()
        read += 20
    answer = await user.answer()
    assert (answer.status, answer.code) == (429, "rate_limit_exceeded")
    assert read <= 40


@pytest.mark.parametrize("path", [CHAT, OLLAMA])
async def test_who_hangs_up_before_the_first_byte_pays_for_the_prompt(path: str) -> None:
    site = Site()
    node = site.node(paths=[path])
    message = {"role": "user", "content": "word" * 500}
    user = ask(site, {**STREAM, "messages": [message]}, path)
    call = await node.call()
    user.hang_up()
    await call.stopped()
    entry = await site.entry()
    assert (entry.prompt_tokens, entry.completion_tokens, entry.estimated) == (500, None, True)


@pytest.mark.parametrize(
    "events", [[chunk("word")] * 40, [chunk("word")] * 40 + [usage_chunk(0, 0)], [chunk("w" * 160)]]
)
async def test_a_whole_stream_of_an_engine_that_tells_nothing_is_estimated(
    events: list[bytes],
) -> None:
    site = Site()
    node = site.node()
    user = ask(site, STREAM)
    (await node.call()).stream_all(*events, chunk(None), DONE)
    assert (await user.answer()).status == 200
    entry = await site.entry()
    assert (entry.outcome, entry.prompt_tokens, entry.estimated) == ("ok", 1, True)
    assert entry.completion_tokens is not None
    assert 40 <= entry.completion_tokens <= 45


@pytest.mark.parametrize(
    ("path", "given", "answer", "prompt", "completion"),
    [
        (CHAT, ASK, {"choices": [{"message": {"content": "word" * 30}}]}, 1, 30),
        (MESSAGES, {**ASK, "max_tokens": 9}, {"content": [{"text": "word" * 9}]}, 1, 9),
        (OLLAMA, {**ASK, "stream": False}, {"message": {"content": "word" * 7}}, 1, 7),
        ("/v1/embeddings", {"input": ["word"] * 5}, {"data": [{"embedding": [0.5]}]}, 5, None),
        ("/api/embed", {"input": "word" * 5}, {"embeddings": [[0.5]]}, 5, None),
    ],
)
async def test_a_whole_answer_of_an_engine_that_tells_nothing_is_estimated(
    path: str, given: Any, answer: Any, prompt: int, completion: int | None
) -> None:
    site = Site()
    node = site.node(paths=[path])
    user = ask(site, {"model": "tiny", **given}, path)
    (await node.call()).answer(200, json.dumps(answer).encode())
    assert (await user.answer()).status == 200
    entry = await site.entry()
    assert (entry.prompt_tokens, entry.completion_tokens) == (prompt, completion)
    assert entry.estimated


async def test_an_answer_without_text_may_have_no_tokens() -> None:
    for body, whole in ((ASK, True), (STREAM, False)):
        site = Site()
        node = site.node()
        user = ask(site, body)
        call = await node.call()
        if whole:
            call.answer(200, ANSWER.replace(b'completion_tokens":7', b'completion_tokens":0'))
        else:
            call.stream_all(chunk(""), chunk(None), usage_chunk(5, 0), DONE)
        assert (await user.answer()).status == 200
        entry = await site.entry()
        assert (entry.prompt_tokens, entry.completion_tokens, entry.estimated) == (5, 0, False)


async def test_what_an_engine_has_told_is_charged_as_it_is() -> None:
    for body, answer in ((ASK, [ANSWER]), (STREAM, [chunk("w" * 400), chunk(None)])):
        site = Site()
        node = site.node()
        user = ask(site, body)
        call = await node.call()
        if body is ASK:
            call.answer(200, answer[0])
        else:
            call.stream_all(*answer, usage_chunk(5, 7), DONE)
        assert (await user.answer()).status == 200
        entry = await site.entry()
        assert (entry.prompt_tokens, entry.completion_tokens, entry.estimated) == (5, 7, False)


@pytest.mark.parametrize("streamed", [True, False])
async def test_errors_and_refusals_cost_nothing(streamed: bool) -> None:
    site = Site()
    node = site.node()
    user = ask(site, STREAM)
    call = await node.call()
    if streamed:
        call.stream_all(event({"error": {"message": "out of memory"}}))
    else:
        call.answer(400, b'{"error":{"message":"too long"}}')
    await user.answer()
    await ask(site, {**ASK, "model": "nobody's"}).answer()
    assert [(one.prompt_tokens, one.completion_tokens) for one in site.ledger] == [(None, None)] * 2
    assert not any(one.estimated for one in site.ledger)


async def test_a_node_that_is_lost_in_the_middle_is_charged_for_what_came_of_it() -> None:
    site = Site()
    node = site.node()
    user = ask(site, STREAM)
    call = await node.call()
    call.begin_stream()
    for _ in range(20):
        call.data(chunk("word"))
    call.data(chunk("last"))
    await user.until(b"last")
    call.fail(Code.ENGINE_FAILED)
    await user.answer()
    entry = await site.entry()
    assert (entry.outcome, entry.completion_tokens, entry.estimated) == ("failed", 21, True)


@pytest.mark.parametrize("told", [True, False])
async def test_a_continued_answer_is_the_sum_of_its_parts(told: bool) -> None:
    site = Site()
    nodes = [site.node(), site.node()]
    user = ask(site, STREAM, x_fabric_failover="continue")
    call, first = await first_call(nodes)
    call.begin_stream()
    for _ in range(10):
        call.data(chunk("eight by"))
    call.data(chunk("last"))
    await user.until(b"last")
    first.vanish()
    [other] = [node for node in nodes if node is not first]
    rest = await other.call()
    rest.begin_stream()
    for _ in range(10):
        rest.data(chunk("more"))
    if told:
        rest.data(chunk(None) + usage_chunk(30, 10) + DONE)
        rest.end()
        await user.answer()
    else:
        rest.data(chunk("over"))
        await user.until(b"over")
        user.hang_up()
        await rest.stopped()
    entry = await site.entry()
    assert (entry.continued, entry.estimated) == (1, True)
    assert entry.completion_tokens == 21 + (10 if told else 11)
