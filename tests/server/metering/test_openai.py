"""What is read off an answer as it passes, and that it passes as it is."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fabric_server.metering.openai import MAX_EVENT, BodyMeter, NoMeter, StreamMeter
from fabric_server.metering.usage import Usage
from tests.site import DONE, chunk, event, usage_chunk

STORY = [
    chunk(""),
    chunk("Hel", usage=None),
    chunk('"usage":{"prompt_tokens":99}'),
    chunk('"finish_reason":"stop"'),
    b": keep-alive\n\n",
    chunk("lo\n\ndata: [DONE]\n\n"),
    chunk("模型"),
    b"event: message\nid: 7\n" + chunk("x"),
    chunk(None, usage=None),
    usage_chunk(5, 7),
    DONE,
]
KEPT = [part for part in STORY if part != usage_chunk(5, 7)]


def run(meter: StreamMeter, pieces: list[bytes]) -> bytes:
    return b"".join([meter.feed(piece) for piece in pieces] + [meter.end()])


def cut(text: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted(at for at in cuts if 0 < at < len(text))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


# ── streams ───────────────────────────────────────────────────────────────────────────────────


@settings(deadline=None)
@given(
    st.lists(st.integers(1, sum(map(len, STORY))), max_size=30),
    st.booleans(),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
)
@example(list(range(2000)), False, b"\r\n")
def test_in_any_pieces_a_stream_is_the_same_but_for_the_usage_that_nobody_asked_for(
    cuts: list[int], asked: bool, newline: bytes
) -> None:
    def lines(parts: list[bytes]) -> bytes:
        return b"".join(parts).replace(b"\n", newline)

    meter = StreamMeter(usage_requested=asked)
    assert run(meter, cut(lines(STORY), cuts)) == lines(STORY if asked else KEPT)
    assert meter.usage == Usage(5, 7)
    assert meter.complete
    assert not meter.failed


@settings(deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(1, 300), max_size=8))
def test_bytes_that_are_no_events_pass_as_they_are(noise: bytes, cuts: list[int]) -> None:
    assert run(StreamMeter(usage_requested=True), cut(noise, cuts)) == noise


@settings(deadline=None)
@given(st.text('data:{}[]" \n\rusagechoices,1', max_size=80).map(str.encode))
def test_nothing_that_an_engine_sends_raises(noise: bytes) -> None:
    for asked in (True, False):
        meter = StreamMeter(usage_requested=asked)
        assert len(run(meter, [noise, b'"usage":{' + noise + b"\n\n"])) <= 2 * len(noise) + 11
        body = BodyMeter()
        body.feed(noise + b'"usage":{' + noise)
        body.end()


def test_events_go_on_as_soon_as_they_are_whole() -> None:
    meter = StreamMeter(usage_requested=False)
    assert meter.feed(chunk("a")) == chunk("a")
    assert meter.feed(chunk("b")[:-1]) == b""
    assert meter.feed(b"\n" + chunk("c")[:9]) == chunk("b")
    assert meter.feed(chunk("c")[9:]) == chunk("c")


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        (chunk(None), True),
        (chunk("a") + DONE, True),
        (event({"choices": [{"text": "a", "finish_reason": "length"}]}), True),
        (b'data:{"choices":[{"finish_reason" : "tool_calls"}]}\n\n', True),
        (b"data:[DONE]\n\n", True),
        (chunk("a"), False),
        (event({"choices": [{"text": "a", "finish_reason": None}]}), False),
        (chunk('{"finish_reason":"stop"}'), False),
        (chunk("finish_reason"), False),
        (event({"choices": [{"delta": {"content": ['"finish_reason":"stop"']}}]}), False),
        (chunk("data: [DONE]") + chunk("[DONE]"), False),
        (b"data: x[DONE]\n\n", False),
        (b": data: [DONE]\n\n", False),
        (b"", False),
    ],
)
def test_complete_means_that_a_terminal_marker_was_seen(text: bytes, complete: bool) -> None:
    for pieces in ([text], cut(text, list(range(len(text))))):
        meter = StreamMeter(usage_requested=False)
        assert run(meter, pieces) == text
        assert meter.complete == complete
        assert meter.done == (complete and b"[DONE]" in text)


@pytest.mark.parametrize(
    ("text", "failed"),
    [
        (event({"error": {"message": "x"}}), True),
        (event({"error": "x"}), True),
        (b'data:{ "error" : {"message":"x"}}\n\n', True),
        (b'event: error\ndata: {"type":"error","error":{}}\n\n', True),
        (b'error: {"error":{"code":500}}\n\n', True),
        (chunk("a") + event({"error": {"message": "x"}}), True),
        (event({"error": None, "choices": []}), False),
        (chunk('{"error":{}}'), False),
        (chunk('data: {"error":{}}'), False),
        (chunk("a", error=""), False),
        (chunk("a", error="x"), True),
    ],
)
def test_an_error_told_within_a_stream_is_noticed(text: bytes, failed: bool) -> None:
    meter = StreamMeter(usage_requested=False)
    told = run(meter, [text])
    assert failed or told == text
    assert (b'"error":{"message":' in told) == failed
    assert meter.failed == failed


def test_usage_of_zero_does_not_hide_what_was_told_before() -> None:
    """Ollama's completions say 0 and 0 where they don't know; vLLM may count up as it goes."""
    zero = {"prompt_tokens": 0, "completion_tokens": 0}
    for told, usage in (
        ([zero, zero, {"prompt_tokens": 5, "completion_tokens": 7}], Usage(5, 7)),
        ([{"prompt_tokens": 5, "completion_tokens": 7}, zero], Usage(5, 7)),
        ([{"prompt_tokens": 5, "completion_tokens": n} for n in range(4)], Usage(5, 3)),
        ([zero], Usage(0, 0)),
        ([{"prompt_tokens": 5}], Usage(5, None)),
    ):
        meter = StreamMeter(usage_requested=False)
        events = [chunk("a", usage=figures) for figures in told]
        assert run(meter, events) == b"".join(events), "it has something else to tell"
        assert meter.usage == usage


def test_usage_within_the_last_chunk_is_read_and_the_chunk_kept() -> None:
    meter = StreamMeter(usage_requested=False)
    last = chunk(None, usage={"prompt_tokens": 1, "completion_tokens": 2, "x": {"y": [1]}})
    assert run(meter, [last]) == last
    assert meter.usage == Usage(1, 2)


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": -1},
        {"prompt_tokens": "5"},
        {"completion_tokens": 1.5},
        [],
        "much",
    ],
)
def test_figures_that_can_t_be_true_are_not_believed(usage: Any) -> None:
    meter = StreamMeter(usage_requested=False)
    text = event({"choices": [], "usage": usage})
    assert run(meter, [text]) == b""
    assert meter.usage == Usage()
    body = BodyMeter()
    body.feed(json.dumps({"usage": usage}).encode())
    body.end()
    assert body.usage == Usage()


def test_an_event_of_any_size_passes_and_one_that_does_not_end_is_not_held_for_ever() -> None:
    huge = chunk("x" * 3 * MAX_EVENT)
    text = chunk("a") + huge + chunk(None) + usage_chunk(1, 2) + DONE
    meter = StreamMeter(usage_requested=False)
    seen, torn = b"", False
    for piece in cut(text, list(range(0, len(text), 16_000))):
        seen += meter.feed(piece)
        torn = torn or meter.torn
    seen += meter.end()
    assert seen == text.replace(usage_chunk(1, 2), b"")
    assert torn
    assert not meter.torn
    assert meter.usage == Usage(1, 2)


@settings(deadline=None)
@given(st.integers(0, 200))
def test_a_marker_in_a_huge_event_is_seen_wherever_it_is_cut(shift: int) -> None:
    body = event({"choices": [{"text": "x" * (MAX_EVENT + 200), "finish_reason": "stop"}]})
    at = body.index(b'"finish_reason"') - 100 + shift
    meter = StreamMeter(usage_requested=False)
    assert run(meter, [body[:at], body[at:]]) == body
    assert meter.complete


def test_many_small_pieces_of_an_event_cost_no_more_than_they_must() -> None:
    """A node could send an endless event byte by byte."""
    meter = StreamMeter(usage_requested=False)
    start = time.process_time()
    for _ in range(MAX_EVENT + 1000):
        meter.feed(b"x")
    assert time.process_time() - start < 10, "some 0.5 s, if it is not quadratic"


# ── answers in one piece ──────────────────────────────────────────────────────────────────────

CHAT = {
    "id": "x",
    "choices": [{"message": {"content": 'what is "usage"? "usage":{}'}, "finish_reason": "stop"}],
}
FIGURES = {
    "prompt_tokens": 5,
    "completion_tokens": 7,
    "total_tokens": 12,
    "prompt_tokens_details": {"cached_tokens": 3},
    "completion_tokens_details": {"reasoning_tokens": 1},
}


@settings(deadline=None)
@given(st.lists(st.integers(1, 600), max_size=10), st.sampled_from([None, 2]), st.booleans())
def test_usage_at_the_beginning_or_the_end_of_a_body_is_found_in_any_pieces(
    cuts: list[int], indent: int | None, at_end: bool
) -> None:
    whole = {**CHAT, "usage": FIGURES} if at_end else {"usage": FIGURES, **CHAT}
    text = json.dumps(whole, indent=indent).encode()
    meter = BodyMeter()
    assert b"".join([meter.feed(piece) for piece in cut(text, cuts)]) == text
    assert meter.end() == b""
    assert meter.usage == Usage(5, 7)


@pytest.mark.parametrize("at_end", [True, False])
@pytest.mark.parametrize("size", [1, 700, 16_000])
def test_embeddings_of_megabytes_are_read_at_both_ends(at_end: bool, size: int) -> None:
    data = [{"object": "embedding", "embedding": [0.123456789] * 20_000, "index": 0}] * 10
    usage = {"prompt_tokens": 9, "total_tokens": 9}
    whole: dict[str, Any] = {"data": data, "usage": usage} if at_end else {"usage": usage}
    text = json.dumps({**whole, "data": data}).encode()
    text = text if size > 1 else text[:40_000] + text[-40_000:]
    meter = BodyMeter()
    for at in range(0, len(text), size):
        meter.feed(text[at : at + size])
    meter.end()
    assert meter.usage == Usage(9, None)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b'{"content":"usage"}',
        b'{"usage":null}',
        b'{"usage":{}}',
        b'{"usage":{"prompt_tokens":',
        b'{"usage":' * 2000,
        b'{"usage":{' * 2000,
        b'{"usage":{"prompt_tokens":"\xff"}}',
    ],
)
def test_a_body_without_figures_has_none(text: bytes) -> None:
    meter = BodyMeter()
    assert meter.feed(text) == text
    meter.end()
    assert meter.usage == Usage()


def test_a_word_that_looks_like_usage_does_not_hide_it() -> None:
    for text in (
        b'{"usage":{"prompt_tokens":1,"completion_tokens":2},"x":{"token":"usage"}}',
        b'{"usage":{"prompt_tokens":1,"completion_tokens":2},"x":{"usage":{"cpu":1}}}',
        b'{"usage":{"prompt_tokens":1,"completion_tokens":2},"usage_x":{"usage": null}}',
    ):
        meter = BodyMeter()
        meter.feed(text)
        meter.end()
        assert meter.usage == Usage(1, 2)


def test_what_is_not_metered_passes() -> None:
    meter = NoMeter()
    assert meter.feed(b"x") + meter.end() == b"x"
    assert (meter.usage, meter.complete, meter.failed) == (Usage(), True, False)


@pytest.mark.parametrize(
    ("said", "message", "code"),
    [
        ({"error": {"message": "no", "code": 500}}, "no", "engine_error"),
        ({"error": "can't load /home/joe/x.gguf"}, "can't load x.gguf", "engine_error"),
        ({"error": "a " * 995 + "/home/joe/private/x.gguf"}, "a " * 995 + "x.gguf", "engine_error"),
        ({"error": "no", "path": "/home/joe", "model": "/home/joe/x"}, "no", "engine_error"),
        ({"error": {"message": "no", "type": "/home/joe", "param": "/x/y"}}, "no", "engine_error"),
        ({"error": {"message": "Post http://127.0.0.1:9/x"}}, "Post (an address)", "engine_error"),
        ({"error": {"message": "no", "code": "too_warm"}}, "no", "too_warm"),
        ({"object": "error", "message": "no", "code": 500}, "no", "engine_error"),
    ],
)
@pytest.mark.parametrize("form", [b"data: %b\n\n", b"error: %b\n\n"])
def test_an_engine_s_error_in_a_stream_has_openai_s_form(
    said: dict[str, Any], message: str, code: str, form: bytes
) -> None:
    meter = StreamMeter(True)
    before, after = chunk("a"), b"data: [DONE]\n\n"
    error = form % json.dumps(said).encode()
    if form.startswith(b"error"):
        error = form % json.dumps({"error": said.get("error", said)}).encode()
    told = meter.feed(before + error + after) + meter.end()
    assert meter.failed
    assert told.startswith(before)
    assert told.endswith(after)
    event = json.loads(told[len(before) : -len(after)].removeprefix(b"data: "))
    assert event == {
        "error": {"message": message, "type": "server_error", "param": None, "code": code}
    }
