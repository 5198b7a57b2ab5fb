"""Estimates of tokens: close to four bytes of text each, and never nothing for some text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric_server.metering.estimate import (
    TOKENS_OF_MEDIA,
    media_tokens,
    prompt_tokens,
    streamed_tokens,
    tokens_of,
    whole_tokens,
)
from fabric_server.metering.events import MessagesMeter, ResponsesMeter
from fabric_server.metering.ollama import LinesMeter
from fabric_server.metering.openai import Meter, StreamMeter


def _sse(fields: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def _chat(text: str) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return _sse(
        {"id": "chatcmpl-1234567890", "object": "chat.completion.chunk", "choices": [choice]}
    )


def _completion(text: str) -> bytes:
    return _sse({"object": "text_completion", "choices": [{"index": 0, "text": text}]})


def _reasoning(text: str) -> bytes:
    return _sse({"choices": [{"index": 0, "delta": {"reasoning_content": text}}]})


def _tool(text: str) -> bytes:
    call = {"index": 0, "function": {"arguments": text}}
    return _sse({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]})


def _message(text: str) -> bytes:
    delta = {"type": "text_delta", "text": text}
    fields = {"type": "content_block_delta", "index": 0, "delta": delta}
    return b"event: content_block_delta\n" + _sse(fields)


def _response(text: str) -> bytes:
    fields = {"type": "response.output_text.delta", "item_id": "msg_1", "delta": text}
    return b"event: response.output_text.delta\n" + _sse(fields)


def _line(text: str) -> bytes:
    message = {"role": "assistant", "content": text}
    return json.dumps({"model": "tiny", "message": message, "done": False}).encode() + b"\n"


def _generated(text: str) -> bytes:
    return json.dumps({"model": "tiny", "response": text, "done": False}).encode() + b"\n"


DIALECTS: list[tuple[Callable[[str], bytes], Callable[[bool], Meter]]] = [
    (_chat, StreamMeter),
    (_completion, StreamMeter),
    (_reasoning, StreamMeter),
    (_tool, StreamMeter),
    (_message, MessagesMeter),
    (_response, ResponsesMeter),
    (_line, LinesMeter),
    (_generated, LinesMeter),
]
_words = st.text(st.characters(codec="ascii", categories=["L", "N", "Z"]), min_size=1, max_size=300)


def _estimate(meter: Meter, pieces: list[bytes]) -> int:
    for piece in pieces:
        meter.feed(piece)
    return streamed_tokens(sum(map(len, pieces)) - meter.aside, meter.events, meter.sample)


@pytest.mark.parametrize(("event", "meter"), DIALECTS)
@given(words=st.lists(_words, min_size=1, max_size=40))
def test_a_stream_is_its_text_by_four_and_at_least_its_events(
    event: Callable[[str], bytes], meter: Callable[[bool], Meter], words: list[str]
) -> None:
    tokens = _estimate(meter(True), [event(word) for word in words])
    text = sum(map(len, words))
    assert max(len(words), tokens_of(text)) <= tokens <= max(len(words), tokens_of(text)) + 1


@pytest.mark.parametrize(("event", "meter"), DIALECTS)
@pytest.mark.parametrize("together", [2, 3, 50])
def test_events_that_arrive_together_count_as_they_are(
    event: Callable[[str], bytes], meter: Callable[[bool], Meter], together: int
) -> None:
    pieces = [event(" word") * together] * (300 // together)
    assert 300 <= _estimate(meter(True), pieces) <= 400


def test_events_that_differ_by_their_probabilities_are_not_text() -> None:
    def event(size: int) -> bytes:
        entry = {"token": "word", "logprob": -1.5, "top_logprobs": [{"token": "x" * size}]}
        delta = {"delta": {"content": "word"}, "logprobs": {"content": [entry]}}
        return _sse({"choices": [delta]})

    assert _estimate(StreamMeter(True), [event(9 * number) for number in range(100, 0, -1)]) == 100


def test_what_repeats_the_text_of_a_response_is_not_counted() -> None:
    text = [_response("word")] * 100
    done = _sse({"type": "response.output_text.done", "text": "word" * 100})
    assert _estimate(ResponsesMeter(), [*text, done]) < 250


@pytest.mark.parametrize(
    ("body", "low", "high"),
    [
        ({"choices": [{"message": {"content": "word" * 100}}], "id": "x" * 50}, 100, 101),
        ({"choices": [{"text": "word" * 100}]}, 100, 101),
        ({"content": [{"type": "text", "text": "word" * 100}], "type": "message"}, 100, 101),
        ({"output": [{"content": [{"text": "word" * 100}]}], "object": "response"}, 100, 101),
        ({"message": {"content": "word" * 5000}, "done": True}, 5000, 5010),
        ({"response": "", "done": True}, 0, 0),
        ({"odd": "word"}, 1, 1),
    ],
)
def test_an_answer_in_one_piece_is_its_text_by_four(
    body: dict[str, Any], low: int, high: int
) -> None:
    text = json.dumps(body).encode()
    assert low <= whole_tokens(len(text), text[:8192]) <= high
    assert whole_tokens(400, b"1\n00:00:01,000 --> 00:00:02,000\nHello") == 100


@given(_words)
def test_the_rest_of_a_body_is_not_its_prompt(text: str) -> None:
    message = {"role": "user", "content": text}
    for prompt in (
        {"messages": [message]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]},
        {"prompt": text},
        {"input": [text]},
        {"system": text, "messages": []},
    ):
        body = {"model": "m" * 200, **prompt, "metadata": {"a": "b" * 300}, "stream": True}
        assert prompt_tokens(json.dumps(body).encode()) == tokens_of(len(text))


def test_media_have_a_fixed_sum() -> None:
    data = "QUJD" * 500
    url = f"data:image/png;base64,{data}"
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image", "source": {"type": "base64", "data": data}},
        {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
        {"type": "input_image", "image_url": url},
    ]
    for part in parts:
        content = [{"type": "text", "text": "What?"}, part]
        body = {"messages": [{"role": "user", "content": content}]}
        assert prompt_tokens(json.dumps(body).encode()) == 2 + TOKENS_OF_MEDIA
    ollama = {"messages": [{"role": "user", "content": "What?", "images": [data, data]}]}
    assert prompt_tokens(json.dumps(ollama).encode()) == 2 + 2 * TOKENS_OF_MEDIA
    large = json.dumps(
        {"messages": [{"role": "user", "content": [{"image_url": url + data * 40}]}]}
    )
    assert TOKENS_OF_MEDIA <= media_tokens(large.encode()) <= TOKENS_OF_MEDIA + 100
    assert media_tokens(b'{"prompt":"' + b"word " * 9000) == 0


def test_token_ids_and_nonsense_are_estimated_too() -> None:
    assert prompt_tokens(b'{"prompt":[1,2,3,4]}') == 4
    assert prompt_tokens(b'{"prompt":' + b"[" * 9000) > 0
    assert prompt_tokens(b"\xff" * 40) == 10
    assert prompt_tokens(b"{}") == 0
