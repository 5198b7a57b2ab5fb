"""Answers of all kinds of engines come out in one shape, and otherwise as they were."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from fabric_client.reasoning import ReasoningFilter
from fabric_client.reasoning.body_filter import MAX_BODY
from fabric_client.reasoning.splitter import CONTENT, REASONING
from fabric_client.reasoning.stream_filter import MAX_EVENT
from fabric_server.metering.openai import BodyMeter, StreamMeter
from fabric_server.metering.usage import Usage
from tests.client.reasoning.rules import deltas, expected
from tests.site import DONE, event

STREAM = [("content-type", "text/event-stream; charset=utf-8")]
BODY = [("content-type", "application/json"), ("content-length", "1000")]
COMMON = {"id": "c-1", "object": "chat.completion.chunk", "created": 7, "model": "m"}
USAGE = {"prompt_tokens": 5, "completion_tokens": 10, "total_tokens": 15}
Json = dict[str, Any]


def chunk(delta: Json, index: int = 0, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return event({**COMMON, "choices": [choice], **more})


ROLE = chunk({"role": "assistant", "content": ""})
STOP = chunk({}, finish="stop")


def usage(**more: Any) -> bytes:
    return event({**COMMON, "choices": [], "usage": {**USAGE, **more}})


def run(pieces: list[bytes], headers: list[tuple[str, str]] = STREAM, inline: bool = True) -> bytes:
    reasoning = ReasoningFilter(inline=inline)
    reasoning.head(200, headers)
    return b"".join([reasoning.feed(piece) for piece in pieces] + [reasoning.end()])


def cut(text: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted(at for at in cuts if 0 < at < len(text))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def chunks(stream: bytes) -> list[Json]:
    """As a client reads them, which ends at [DONE]."""
    told = [line[6:] for line in stream.splitlines() if line.startswith(b"data: ")]
    return [json.loads(data) for data in told[: told.index(b"[DONE]")]]


def said(stream: bytes, index: int = 0) -> tuple[str, str]:
    """A choice's reasoning, and its content."""
    told = [
        choice["delta"]
        for chunk in chunks(stream)
        for choice in chunk["choices"]
        if choice["index"] == index
    ]
    thought = "".join(delta.get("reasoning_content") or "" for delta in told)
    return thought, "".join(delta.get("content") or "" for delta in told)


def body(*messages: Json, **more: Any) -> bytes:
    choices = [
        {"index": index, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
        for index, message in enumerate(messages)
    ]
    return json.dumps({**COMMON, "choices": choices, "usage": USAGE, **more}).encode()


def message(answer: bytes, index: int = 0) -> Json:
    found: Json = json.loads(answer)["choices"][index]["message"]
    return found


# ── streams ───────────────────────────────────────────────────────────────────────────────────


@settings(deadline=None)
@given(deltas, st.lists(st.integers(1, 4000), max_size=30), st.sampled_from(["\n", "\r\n", "\r"]))
@example(list("<think>模</think>型"), list(range(4000)), "\r\n")
def test_in_any_cut_streamed_and_unstreamed_tell_the_same(
    texts: list[str], cuts: list[int], newline: str
) -> None:
    events = [ROLE, *(chunk({"content": text}) for text in texts), STOP, usage(), DONE]
    sent = b"".join(events).replace(b"\n", newline.encode())
    parts = expected("".join(texts))
    thought = "".join(text for channel, text in parts if channel == REASONING)
    rest = "".join(text for channel, text in parts if channel == CONTENT)
    streamed = run(cut(sent, cuts))
    assert said(streamed) == (thought, rest)
    if not thought and rest == "".join(texts) and len(parts) <= 1:
        told = [one for one in chunks(streamed) if one["choices"]]
        assert "reasoning_content" not in str(told)
    whole = message(run(cut(body({"content": "".join(texts)}), cuts), BODY))
    assert (whole.get("reasoning_content", ""), whole["content"]) == (thought, rest)


@settings(deadline=None)
@given(st.lists(st.integers(1, 4000), max_size=30), st.sampled_from(["\n", "\r\n", "\r"]))
@example(list(range(4000)), "\r\n")
def test_an_answer_without_reasoning_passes_as_the_engine_sent_it(
    cuts: list[int], newline: str
) -> None:
    events = [
        b": hello\n\n",
        chunk({"role": "assistant", "content": None}),
        chunk({"content": " \n"}),
        b"event: message\nid: 7\n" + chunk({"content": "模型"}, usage=None),
        chunk({"content": 'He said "reasoning", "usage":{"index":1}, <think>'}),
        chunk({"content": "</think>\n\ndata: [DONE]\n\n"}),
        chunk({"tool_calls": [{"index": 1, "function": {"arguments": "{"}}]}),
        event({"error": {"message": "out of memory"}}),
        STOP,
        DONE,
    ]
    sent = b"".join(events).replace(b"\n", newline.encode())
    assert run(cut(sent, cuts)) == sent


SOME_EVENTS = [
    b": hello\n\n",
    chunk({"content": "plain"}),
    chunk({"content": "<think>"}),
    chunk({"content": "</think>"}),
    chunk({"reasoning": "a"}),
    chunk({"reasoning_content": "a"}),
    chunk({"content": "b"}, index=1),
    chunk({"content": "NaN"}).replace(b'"NaN"', b"NaN"),
    event({"choices": None}),
    event({"error": {"message": "out of memory"}}),
    chunk({"content": "lines"}).replace(b"\n", b"\r\n"),
    STOP,
]


@settings(deadline=None)
@given(st.lists(st.sampled_from(SOME_EVENTS), min_size=1, max_size=12), st.sets(st.integers(1, 11)))
@example([SOME_EVENTS[1], SOME_EVENTS[4], SOME_EVENTS[1]], {1})
@example([SOME_EVENTS[1], *SOME_EVENTS[1:7]], set())
def test_events_that_come_as_one_piece_are_told_as_events_that_come_alone(
    events: list[bytes], pieces: set[int]
) -> None:
    bounds = [0, *sorted(at for at in pieces if at < len(events)), len(events)]
    joined = [b"".join(events[start:end]) for start, end in pairwise(bounds)]
    assert run(joined) == run(events)


def test_plain_events_go_on_at_once() -> None:
    reasoning = ReasoningFilter()
    reasoning.head(200, STREAM)
    for text in ["Well", " then", "<think>", " x"]:
        sent = chunk({"content": text})
        assert reasoning.feed(sent) == sent


def test_reasoning_of_ollama_and_vllm_is_told_under_both_names() -> None:
    told = chunks(run([ROLE, chunk({"reasoning": "a"}), chunk({"content": "b"}), STOP, DONE]))
    deltas = [choice["delta"] for one in told for choice in one["choices"]]
    assert deltas[1] == {"reasoning": "a", "reasoning_content": "a"}
    assert deltas[2] == {"content": "b"}


def test_reasoning_content_of_llama_server_and_deepseek_passes_as_it_was_sent() -> None:
    sent = [ROLE, chunk({"content": None, "reasoning_content": "a"}), chunk({"content": "b"}), STOP]
    assert run([*sent, DONE]) == b"".join([*sent, DONE])


def test_what_an_engine_has_split_is_not_split_again() -> None:
    sent = [chunk({"reasoning_content": "a"}), chunk({"content": "<think>b</think>"}), STOP, DONE]
    assert run(sent) == b"".join(sent)


def test_an_event_with_both_becomes_two_and_what_else_it_says_is_said_once() -> None:
    delta = {"role": "assistant", "content": "<think>a</think>b", "tool_calls": [{"index": 0}]}
    sent = b"id: 7\n" + chunk(delta, finish="stop", seed=1.50)
    out = run([sent, DONE])
    first, last = chunks(out)
    assert first == {
        **COMMON,
        "choices": [
            {
                "index": 0,
                "delta": {"role": "assistant", "reasoning_content": "a"},
                "finish_reason": None,
            }
        ],
    }
    choice = {
        "index": 0,
        "delta": {"tool_calls": [{"index": 0}], "content": "b"},
        "finish_reason": "stop",
    }
    assert last == {**COMMON, "choices": [choice], "seed": 1.5}
    assert b'"seed":1.5' in out  # unknown fields keep their bytes
    assert out.count(b"id: 7\n") == 1
    for told in (first, last):
        ChatCompletionChunk.model_validate(told)


@pytest.mark.parametrize(
    "end",
    [
        [STOP, DONE],
        [chunk({}, finish="stop").replace(b"{}", b"null"), DONE],
        [usage(), DONE],
        [DONE],
        [event({"error": {}}), DONE],
        [],
    ],
)
def test_what_is_held_back_is_said_before_the_end(end: list[bytes]) -> None:
    held = chunk({"content": "<think>a</thi"})
    reasoning = ReasoningFilter()
    reasoning.head(200, STREAM)
    assert said(reasoning.feed(held) + DONE) == ("a", "")
    out = b"".join([reasoning.feed(piece) for piece in end] + [reasoning.end()])
    last = out.index(b"</thi")
    assert said(out[: out.index(b"\n\n", last)] + b"\n\n" + DONE) == ("</thi", "")
    for mark in (b'"stop"', b'"error"', b"[DONE]"):
        assert mark not in out[:last]
        assert (mark in out) == (mark in b"".join(end))


def test_each_choice_is_split_by_itself() -> None:
    texts = [["<think>a", "</think>b"], ["No ", "<think>"], ["<think>c", "d"]]
    sent = [chunk({"content": texts[n][i]}, index=n) for i in (0, 1) for n in (0, 1, 2)]
    out = run([*sent, DONE])
    assert [said(out, n) for n in (0, 1, 2)] == [("a", "b"), ("", "No <think>"), ("cd", "")]
    both = [
        {"index": n, "delta": {"content": texts[n][0] + texts[n][1]}, "finish_reason": None}
        for n in (0, 1, 2)
    ]
    out = run([chunk({"content": "x"}, index=3), event({**COMMON, "choices": both}), DONE])
    assert [said(out, n) for n in (0, 1, 2)] == [("a", "b"), ("", "No <think>"), ("cd", "")]


def test_text_can_be_left_alone_while_fields_get_their_alias() -> None:
    sent = [chunk({"content": "<think>a</think>b"}), STOP, DONE]
    assert run(sent, inline=False) == b"".join(sent)
    assert said(run([chunk({"reasoning": "a"}), DONE], inline=False)) == ("a", "")
    whole = body({"content": "<think>a</think>b"})
    assert message(run([whole], BODY, inline=False)) == message(whole)


# ── usage ─────────────────────────────────────────────────────────────────────────────────────


def shares(events: list[bytes], headers: list[tuple[str, str]] = STREAM) -> tuple[int, int]:
    out = run(events, headers)
    told = chunks(out)[-1] if headers is STREAM else json.loads(out)
    seen = told["usage"]
    assert {name: seen[name] for name in USAGE} == USAGE
    return seen["analysis_tokens"], seen["final_tokens"]


THOUGHTS = [chunk({"content": text}) for text in ["<think>", "a", "b", "c</think>", "d", "e"]]


def test_tokens_are_shared_out_by_the_events_that_were_seen() -> None:
    thought = [chunk({"reasoning": "a"})] * 3
    assert shares([ROLE, *thought, chunk({"content": "b"}) * 2, STOP, usage(), DONE]) == (5, 5)
    assert shares([*THOUGHTS, STOP, usage(), DONE]) == (5, 5)
    assert shares([chunk({"content": "a"}), STOP, usage(), DONE]) == (0, 10)


def test_events_that_tell_nothing_do_not_count_while_a_choice_may_begin_with_a_marker() -> None:
    begun = [chunk({"reasoning": "a"}), chunk({"content": "b"}), chunk({"content": "<"}, index=1)]
    ends = chunk({"content": "p>"}, index=1)
    assert shares([*begun, *[chunk({})] * 8, ends, usage(), DONE]) == (3, 7)


def test_an_engine_that_counts_is_believed() -> None:
    counted = usage(completion_tokens_details={"reasoning_tokens": 9})
    assert shares([*THOUGHTS, STOP, counted, DONE]) == (9, 1)
    absurd = usage(completion_tokens_details={"reasoning_tokens": 11})
    assert shares([*THOUGHTS, STOP, absurd, DONE]) == (10, 0)
    unknown = usage(completion_tokens_details={"reasoning_tokens": 0})
    assert shares([*THOUGHTS, STOP, unknown, DONE]) == (5, 5)


def test_an_unstreamed_answer_is_shared_out_by_its_characters() -> None:
    assert shares([body({"content": "<think>aaa</think>bb"})], BODY) == (6, 4)
    assert shares([body({"content": "b", "reasoning": "a" * 9})], BODY) == (9, 1)
    assert shares([body({"content": "b"})], BODY) == (0, 10)


def test_the_server_still_finds_the_figures_and_can_take_them_out() -> None:
    meter = StreamMeter(usage_requested=False)
    plain = [chunk({"content": "a"}), STOP]
    assert meter.feed(run([*plain, usage(), DONE])) == b"".join([*plain, DONE])
    assert meter.usage == Usage(5, 10)
    assert meter.complete
    whole = BodyMeter()
    whole.feed(run([body({"content": "<think>a</think>b"})], BODY))
    whole.end()
    assert whole.usage == Usage(5, 10)


def test_figures_are_put_into_an_answer_without_reasoning_which_else_stays_as_it_was() -> None:
    sent = b'{ "choices": [{"message": {"content": "\\u0041 \\"usage\\":{"}}],\n "usage" : {'
    counts = b' "completion_tokens" : 10}}'
    figures = b'"analysis_tokens":0,"final_tokens":10,'
    assert run([sent + counts], BODY) == sent + figures + counts


@pytest.mark.parametrize(
    "more",
    [
        {"usage": {**USAGE, "analysis_tokens": None, "final_tokens": 3}},
        {"timings": {"usage": {"completion_tokens": 1}}},
    ],
)
def test_figures_are_told_once_and_in_the_right_place(more: Json) -> None:
    sent = body({"content": "a"}, **more)
    told = json.loads(run([sent], BODY), object_pairs_hook=without_doubles)
    shares = {"analysis_tokens": 0, "final_tokens": USAGE["completion_tokens"]}
    assert told == json.loads(sent) | {"usage": json.loads(sent)["usage"] | shares}


def without_doubles(pairs: list[tuple[str, Any]]) -> Json:
    assert len(pairs) == len(dict(pairs)), pairs
    return dict(pairs)


def test_figures_that_are_there_already_and_usage_without_figures_stay() -> None:
    for told in ({"completion_tokens": None}, {"analysis_tokens": 1, "final_tokens": 9}):
        sent = [*[chunk({"content": "a"}), STOP], usage(**told), DONE]
        assert run(sent) == b"".join(sent)


# ── in one piece ──────────────────────────────────────────────────────────────────────────────


def test_an_unstreamed_answer_is_split_choice_by_choice() -> None:
    sent = body(
        {"content": "<think>a</think>b", "refusal": None}, {"content": "c"}, {"reasoning": "d"}
    )
    out = run([sent], BODY)
    assert message(out) == {
        "role": "assistant",
        "content": "b",
        "refusal": None,
        "reasoning_content": "a",
    }
    assert message(out, 1) == message(sent, 1)
    assert message(out, 2) == {"role": "assistant", "reasoning": "d", "reasoning_content": "d"}
    ChatCompletion.model_validate(json.loads(out) | {"object": "chat.completion"})


def test_the_length_is_not_announced_of_what_may_become_longer() -> None:
    reasoning = ReasoningFilter()
    assert reasoning.head(200, BODY) is None
    reasoning.feed(body({"content": "a"}))
    reasoning.end()
    assert reasoning.decided == (200, BODY[:1])


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b'{"error":{"message":"out of memory"}}', "out of memory"),
        (b'{"object":"error","message":"boom","code":500}', "boom"),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b"<html>Bad Gateway</html>", "can't be read"),
        (b'{"choices":[{"mess', "can't be read"),
        (b"", "can't be read"),
        (b"null", "can't be read"),
    ],
)
def test_an_answer_that_is_an_error_or_none_is_no_success(sent: bytes, message: str) -> None:
    reasoning = ReasoningFilter()
    assert reasoning.head(200, BODY) is None
    out = reasoning.feed(sent) + reasoning.end()
    assert reasoning.decided is not None
    assert reasoning.decided[0] == 502
    assert message in json.loads(out)["error"]["message"]


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (500, BODY),
        (200, [("content-type", "text/html"), ("content-length", "5")]),
        (200, [*BODY, ("content-encoding", "gzip")]),
        (200, []),
    ],
)
def test_what_is_no_completion_passes_with_its_head(
    status: int, headers: list[tuple[str, str]]
) -> None:
    reasoning = ReasoningFilter()
    assert reasoning.head(status, headers) == (status, headers)
    sent = body({"reasoning": "a"})
    assert reasoning.feed(sent) + reasoning.end() == sent


# ── whatever comes ────────────────────────────────────────────────────────────────────────────


def test_what_is_no_utf_8_is_replaced() -> None:
    for sent in (
        event(b'{"choices":[{"delta":{"content":"a"}}],"\xff":1}'),
        event(b'{"choices":[{"delta":{"content":"a"}}],"b":"\xff"}'),
        event(b'{"choices":[{"delta":{"content":"a\xe2\x82"}}]}'),
        event(b'{"choices":[{"delta":{"content":"a\\ud83d"}}]}'),
    ):
        for out, name in (
            (run([sent]), "delta"),
            (run([sent[6:-2].replace(b"delta", b"message")], BODY), "message"),
        ):
            [choice] = json.loads(out.removeprefix(b"data: "))["choices"]
            assert choice[name]["content"].rstrip("\ufffd") == "a"


def test_an_event_too_long_to_be_held_passes_unread_and_the_next_is_read() -> None:
    long = chunk({"reasoning": "x" * 2 * MAX_EVENT})
    sent = [chunk({"content": "<think>a</th"}), long, chunk({"content": "b</think>c"}), DONE]
    stream = b"".join(sent)
    out = run(cut(stream, list(range(0, len(stream), 65_536))))
    assert long in out
    assert said(out.replace(long, b"")) == ("a</thb", "c")


def test_no_more_is_held_of_an_endless_event_than_of_the_longest() -> None:
    reasoning = ReasoningFilter()
    reasoning.head(200, STREAM)
    fed = passed = 0
    for _ in range(64):
        fed += 65_536
        passed += len(reasoning.feed(b"x" * 65_536))
        assert fed - passed <= MAX_EVENT + 65_536
    assert fed - passed < 3


def test_an_answer_too_long_to_be_held_passes_unread() -> None:
    sent = body({"content": "<think>" + "x" * MAX_BODY})
    assert run(cut(sent, list(range(0, len(sent), 65_536))), BODY) == sent


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
odd_deltas = st.dictionaries(
    st.sampled_from(["content", "reasoning", "reasoning_content", "role", "tool_calls"]),
    values | st.sampled_from(["<think>", "</think>", "a"]),
)
odd_choices = st.fixed_dictionaries(
    {},
    optional={
        "index": values | st.integers(0, 3),
        "delta": values | odd_deltas,
        "message": values | odd_deltas,
        "finish_reason": values | st.just("stop"),
    },
)
odd_answers = st.fixed_dictionaries(
    {},
    optional={
        "choices": values | st.lists(odd_choices | values, max_size=3),
        "usage": values | st.dictionaries(st.just("completion_tokens"), values),
        "id": values,
    },
)
odd_bytes = st.one_of(
    odd_answers.map(event),
    odd_answers.map(lambda value: json.dumps(value, ensure_ascii=True).encode()),
    st.binary(max_size=20),
    st.sampled_from([b"data: ", b"\n\n", b"\r", ROLE, DONE, event(b'{"a\xff":1,"choices":[]}')]),
    st.sampled_from([event(b'{"choices":[{"delta":{"content":"\\ud83d"}}]}'), b"[" * 5000]),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(odd_bytes, max_size=8), st.sampled_from([STREAM, BODY]))
def test_it_never_raises_and_what_it_can_not_read_it_passes(
    pieces: list[bytes], headers: list[tuple[str, str]]
) -> None:
    out = run(pieces, headers)
    if b"choices" not in b"".join(pieces) and headers is STREAM:
        assert out == b"".join(pieces)
