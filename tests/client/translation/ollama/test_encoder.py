"""Answers of Ollama's API, from those that engines gave."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as some

from tests.client.translation.ollama.common import (
    LLAMA,
    LLAMA_TEXT,
    STREAM,
    TOOLS,
    WHOLE,
    Clock,
    event,
    filtered,
    lines,
    translator,
)


def test_a_recorded_stream_becomes_lines_and_its_end_tells_figures() -> None:
    found = translator(clock=Clock(), logprobs=True, top_logprobs=2)
    assert found.head(200, STREAM) is None
    told = lines(found.feed(LLAMA) + found.end())
    assert found.decided == (200, [("content-type", "application/x-ndjson")])
    words = [line["message"]["content"] for line in told]
    assert words == [" or", " ", "la", words[3], ""]
    assert told[0]["logprobs"][0]["token"] == " or"
    assert told[0]["logprobs"][0]["top_logprobs"][1] == {
        "token": "s",
        "logprob": -3.6174368858337402,
        "bytes": [115],
    }
    assert [line["done"] for line in told] == [False] * 4 + [True]
    last = told[-1]
    assert (last["done_reason"], last["prompt_eval_count"], last["eval_count"]) == ("length", 15, 4)
    assert last["prompt_eval_duration"] == 1_000_000
    assert last["total_duration"] == last["prompt_eval_duration"] + last["eval_duration"]
    assert re.fullmatch(r"2026-11-21T\d\d:\d\d:\d\d\.\d{9}Z", last["created_at"])
    assert last["model"] == "tiny"


def test_a_recorded_completion_is_generated() -> None:
    told = lines(filtered(translator("generate", raw=True, logprobs=True), [LLAMA_TEXT]))
    assert [line["response"] for line in told] == ["fic", " f", "e", ""]
    assert told[0]["logprobs"][0] == {
        "token": "fic",
        "logprob": -3.9823477268218994,
        "bytes": [102, 105, 99],
    }
    assert told[-1]["eval_count"] == 3


def test_probabilities_of_older_completions_are_told_alike() -> None:
    probabilities = {
        "tokens": [" a", " b"],
        "token_logprobs": [-0.5, -1.5],
        "top_logprobs": [{" a": -0.5, " c": -2.0}, None],
    }
    found = translator("generate", raw=True, logprobs=True, top_logprobs=2)
    (line,) = lines(filtered(found, [event(text=" a b", logprobs=probabilities)]))
    assert line["logprobs"] == [
        {
            "token": " a",
            "logprob": -0.5,
            "top_logprobs": [
                {"token": " a", "logprob": -0.5},
                {"token": " c", "logprob": -2.0},
            ],
        },
        {"token": " b", "logprob": -1.5},
    ]


def test_an_engine_that_gives_up_has_not_answered() -> None:
    told = lines(
        filtered(
            translator(),
            [
                event(delta={"content": "Hel"}),
                event(delta={"content": "lo"}, finish_reason="abort"),
            ],
        )
    )
    assert told[1:] == [{"error": "the engine aborted the request"}]


def test_thoughts_and_calls_are_told_apart_and_calls_come_whole() -> None:
    told = lines(filtered(translator(), [TOOLS]))
    assert [line["message"].get("thinking") for line in told[:2]] == ["Das Wetter … ", "in 東京"]
    calls = [call for line in told for call in line["message"].get("tool_calls", [])]
    assert calls == [
        {
            "id": "chatcmpl-tool-a",
            "function": {"index": 0, "name": "weather", "arguments": {"city": "東京"}},
        },
        {"id": "chatcmpl-tool-b", "function": {"index": 1, "name": "clock", "arguments": {}}},
    ]
    assert told[-1]["done_reason"] == "stop"


def test_a_call_that_was_cut_off_is_told_as_words() -> None:
    piece = {"index": 0, "id": "a", "function": {"name": "clock", "arguments": '{"zone": "U'}}
    told = lines(
        filtered(
            translator(),
            [
                event(delta={"tool_calls": [piece]}),
                event(delta={}, finish_reason="length"),
                b"data: [DONE]\n\n",
            ],
        )
    )
    assert [line["message"]["content"] for line in told] == ['{"zone": "U', ""]
    assert told[-1]["done_reason"] == "length"


def test_a_piece_of_no_call_is_an_error() -> None:
    piece = {"index": 3, "function": {"arguments": "{}"}}
    found = translator()
    told = filtered(found, [event(delta={"tool_calls": [piece]})])
    assert json.loads(told) == {"error": "the engine sent a malformed tool call"}
    assert found.decided == (502, [("content-type", "application/json")])


def test_each_event_is_told_at_once() -> None:
    found = translator()
    found.head(200, STREAM)
    for word in ("Hel", "lo", " wörld"):
        (line,) = lines(found.feed(event(delta={"content": word})))
        assert line["message"]["content"] == word


_STREAMS = some.sampled_from([LLAMA, LLAMA.replace(b"\n", b"\r\n"), TOOLS])


@given(_STREAMS, some.lists(some.integers(0, len(TOOLS)), max_size=12), some.booleans())
def test_where_the_bytes_are_cut_makes_no_difference(
    stream: bytes, cuts: list[int], comments: bool
) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    pieces = [stream[a:b] for a, b in pairwise(edges)]
    if comments:
        pieces.insert(0, b": ping\n\nevent: message\nid: 5\n\n")
    plain = stream.replace(b"\r\n", b"\n")
    assert filtered(translator(logprobs=True), pieces) == filtered(
        translator(logprobs=True), [plain]
    )


def test_byte_by_byte_is_the_same_too() -> None:
    pieces = [TOOLS[at : at + 1] for at in range(len(TOOLS))]
    assert filtered(translator(), pieces) == filtered(translator(), [TOOLS])


_KEYS = some.sampled_from(
    [
        *("choices", "delta", "message", "content", "tool_calls", "function", "name", "error"),
        *("arguments", "index", "finish_reason", "usage", "logprobs", "data", "embedding"),
        *("tokens", "top_logprobs", "id", "prompt_tokens", "reasoning", "detail", "text"),
    ]
)
_ANYTHING = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=8),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(_KEYS, inner, max_size=5),
    max_leaves=25,
)


@given(
    some.sampled_from(["chat", "generate", "embed", "embeddings"]),
    some.lists(some.binary(max_size=40) | _ANYTHING, max_size=6),
    some.sampled_from([STREAM, WHOLE, []]),
    some.sampled_from([200, 400, 503]),
)
def test_whatever_an_engine_says_nothing_is_raised(
    path: str, said: list[Any], headers: Any, status: int
) -> None:
    found = translator(path)
    found.head(status, headers)
    told = b""
    for one in said:
        data = one if isinstance(one, bytes) else b"data: " + json.dumps(one).encode() + b"\n\n"
        told += found.feed(data)
    told += found.end()
    for line in told.splitlines():
        assert isinstance(json.loads(line), dict)


@given(some.sampled_from(["chat", "generate", "embed"]), some.booleans(), _ANYTHING)
@example("chat", True, {"choices": {"message": 0}})
def test_nor_by_an_answer_in_one_piece(path: str, stream: bool, said: object) -> None:
    told = filtered(translator(path, stream=stream), [json.dumps(said).encode()], WHOLE)
    lines = told.splitlines() if stream else [told]
    assert lines
    assert all(isinstance(json.loads(line), dict) for line in lines)


def test_an_answer_in_one_piece_is_one_object() -> None:
    whole = {
        "choices": [
            {
                "index": 0,
                "finish_reason": "tool_calls",
                "message": {
                    "role": "assistant",
                    "content": "hm",
                    "reasoning_content": "so",
                    "tool_calls": [
                        {"id": "a", "function": {"name": "clock", "arguments": '{"zone": "UTC"}'}}
                    ],
                },
            }
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 7},
    }
    data = json.dumps(whole).encode()
    told = json.loads(filtered(translator(stream=False), [data[:50], data[50:]], WHOLE))
    assert told["message"] == {
        "role": "assistant",
        "content": "hm",
        "thinking": "so",
        "tool_calls": [
            {"id": "a", "function": {"index": 0, "name": "clock", "arguments": {"zone": "UTC"}}}
        ],
    }
    assert (told["done"], told["done_reason"], told["eval_count"]) == (True, "stop", 7)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"error": {"message": "no such model", "code": 404}}, "no such model"),
        ({"error": "plain"}, "plain"),
        ({"object": "error", "message": "old vLLM", "code": 404}, "old vLLM"),
        ({"detail": "Not Found"}, "Not Found"),
        (b"busy", "busy"),
        (b"", "the engine gave no reason"),
    ],
)
def test_an_engine_s_complaint_keeps_its_status_and_its_words(said: Any, told: str) -> None:
    found = translator()
    status, headers = found.head(404, [*WHOLE, ("retry-after", "3")])
    assert status == 404
    assert ("retry-after", "3") in headers
    data = said if isinstance(said, bytes) else json.dumps(said).encode()
    assert json.loads(found.feed(data) + found.end()) == {"error": told}


def test_a_complaint_within_a_stream_is_the_last_line() -> None:
    broken = b'data: {"error":{"message":"out of memory","code":500}}\n\ndata: [DONE]\n\n'
    told = lines(filtered(translator(), [event(delta={"content": "Hel"}), broken]))
    assert told[-1] == {"error": "out of memory"}
    assert len(told) == 2


def test_a_stream_that_ends_without_a_reason_is_done_only_if_its_end_is_marked() -> None:
    told = lines(filtered(translator(), [event(delta={"content": "Hel"}), b"data: [DONE]\n\n"]))
    assert [line["done"] for line in told] == [False, True]
    assert told[-1]["done_reason"] == "stop"
    told = lines(filtered(translator(), [event(delta={"content": "Hel"})]))
    assert [line["done"] for line in told] == [False]


def test_an_event_without_end_is_given_up() -> None:
    found = translator()
    found.head(200, STREAM)
    told = b"".join(found.feed(b"x" * 2**20) for _ in range(18)) + found.end()
    assert json.loads(told) == {"error": "the engine sent an event that is too long"}


def test_vectors_come_in_the_order_of_the_texts() -> None:
    said = {
        "data": [{"index": 1, "embedding": [0.5]}, {"index": 0, "embedding": [0.25]}],
        "usage": {"prompt_tokens": 4},
    }
    told = json.loads(filtered(translator("embed"), [json.dumps(said).encode()], WHOLE))
    assert told["embeddings"] == [[0.25], [0.5]]
    assert (told["model"], told["prompt_eval_count"]) == ("tiny", 4)
    told = json.loads(filtered(translator("embeddings"), [json.dumps(said).encode()], WHOLE))
    assert told == {"embedding": [0.25]}
