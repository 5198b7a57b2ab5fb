"""Odd answers of engines: what can be read reaches the user whole, and an error is told as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.client.translation.odd_answers import CASES, DIALECTS, Answer, load, translated

PARIS, ROME = ("w", {"city": "Paris"}), ("w", {"city": "Rome"})
TEXTS = {
    "F02-badutf8": "helcaf\ufffdlo",
    "F02-nan": "helxlo",
    "F02-surrogates": "hel\ufffd\ufffdlo",
    "F05-cut-empty": "hel",
    "F05-vllm-error": "hel",
}
"""Texts other than ``hello``."""
CALLS = {
    "F02-strindex": [PARIS],
    "F04-emptyfin": [PARIS],
    "F04-index0-noids": [PARIS, ROME],
    "F04-noargs": [("w", {})],
    "F04-whole-noids": [PARIS, ROME],
}
ERRORS = {
    "F01-200-err": "CUDA out of memory",
    "F01-200-gzip": "can't be read",
    "F05-fin-error": "aborted",
    "F05-vllm-error": "boom",
    "F08-stream-options-422": "stream_options",
    "F13-redirect": "redirect",
}
"""Words of the error that the user is told."""
UNSTREAMED = {"F01-200-err", "F01-200-gzip", "F08-stream-options-422", "F13-redirect"}
"""Errors before any event: they have a status of their own."""
OF_THE_ENGINE_ITSELF = {
    "F01-200-gzip",
    "F05-fin-error",
    "F05-vllm-error",
    "F08-stream-options-422",
    "F13-redirect",
}
"""What the chat dialect, which is not translated, passes to the server as it is."""
FILES = sorted(CASES.glob("*.http"))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_user_gets_what_the_engine_meant(path: Path, dialect: str, stream: bool) -> None:
    name = path.stem
    if dialect == "chat" and (name in CALLS or name in OF_THE_ENGINE_ITSELF) and stream:
        pytest.skip("passes as the engine wrote it")
    if dialect == "chat" and name in ("F01-200-gzip", "F08-stream-options-422", "F13-redirect"):
        pytest.skip("is seen to before the filter")
    told = translated(load(path), dialect, stream=stream)
    text = "" if name in CALLS or name in UNSTREAMED else TEXTS.get(name, "hello")
    if name == "F05-cut-empty":
        assert not told.complete
        if stream:
            assert told.text == text
        return
    if name in ERRORS:
        assert ERRORS[name] in told.error, told
        assert not told.complete
        in_stream = stream and name not in UNSTREAMED
        assert told.status == (200 if in_stream else 422 if "422" in name else 502)
        return
    assert (told.status, told.error) == (200, "")
    assert told.text == text
    if dialect != "chat" or not stream:
        assert told.complete
        assert told.calls == CALLS.get(name, [])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_where_the_bytes_are_cut_makes_no_difference(path: Path) -> None:
    answer = load(path)
    for dialect in ("messages", "responses", "ollama"):
        whole = translated(answer, dialect, stream=True)
        for cut in (1, 7, 64):
            assert translated(answer, dialect, stream=True, cut=cut) == whole


# ── every field, every odd value ──────────────────────────────────────────────────────────────

ODD: list[Any] = [
    None, "", "null", "x", 0, -1, 1.5, 10**30, True, False, [], {}, [1], {"a": None},
    float("nan"), float("-inf"), "\ud83d", [[]], ["x", {"text": "y"}],
]  # fmt: skip
FIELDS = [
    ("id",), ("object",), ("created",), ("model",), ("system_fingerprint",), ("usage",),
    ("service_tier",), ("timings",), ("usage", "prompt_tokens"), ("usage", "completion_tokens"),
    ("usage", "prompt_tokens_details"), ("usage", "completion_tokens_details"),
    ("choices", 0, "index"), ("choices", 0, "logprobs"), ("choices", 0, "stop_reason"),
    ("choices", 0, "delta", "role"), ("choices", 0, "delta", "refusal"),
    ("choices", 0, "delta", "function_call"), ("choices", 0, "delta", "annotations"),
    ("choices", 0, "delta", "audio"), ("choices", 0, "delta", "unknown"),
]  # fmt: skip
"""Fields whose oddness must not touch the text beside them."""


def _chunk(text: str, finish: str | None = None) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}],
    }


def _with(chunk: dict[str, Any], place: tuple[Any, ...], value: object) -> dict[str, Any]:
    at: Any = chunk
    for name in place[:-1]:
        at = at.setdefault(name, {}) if isinstance(at, dict) else at[name]
    at[place[-1]] = value
    return chunk


def _stream(*chunks: object) -> Answer:
    data = "".join(f"data: {json.dumps(one)}\n\n" for one in chunks) + "data: [DONE]\n\n"
    return Answer(200, [("content-type", "text/event-stream")], data.encode())


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("place", FIELDS, ids=lambda place: ".".join(map(str, place)))
def test_one_odd_field_costs_no_text(dialect: str, place: tuple[Any, ...]) -> None:
    for value in ODD:
        odd = _with(_chunk("b"), place, value)
        answer = _stream(_chunk("a"), odd, _chunk("c"), _chunk("", "stop"))
        for stream in (True, False):
            told = translated(answer, dialect, stream=stream)
            text = told.text.replace("\ufffd", "")
            if place[-1] == "refusal" and not text.startswith("abc"):
                continue  # a refusal is text, too
            assert text == "abc", (value, told)
            assert told.error == ""


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("dialect", ["messages", "responses", "ollama"])
def test_an_answer_without_a_word_is_complete(dialect: str, stream: bool) -> None:
    told = translated(_stream(_chunk(""), _chunk("", "stop")), dialect, stream=stream)
    assert (told.status, told.text, told.complete) == (200, "", True)


odd_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "delta", "message", "content", "tool_calls", "function", "name",
                 "arguments", "index", "id", "finish_reason", "usage", "error", "text"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(st.lists(odd_json, max_size=4), st.booleans(), st.booleans())
def test_whatever_comes_nothing_raises_and_no_success_is_empty(
    odd: list[Any], stream: bool, streams: bool
) -> None:
    if streams:
        answer = _stream(*odd)
    else:
        answer = Answer(200, [("content-type", "application/json")], json.dumps(odd[:1]).encode())
        if odd:
            answer = Answer(200, answer.headers, json.dumps(odd[0]).encode())
    for dialect in ("messages", "responses", "ollama"):
        told = translated(answer, dialect, stream=stream)
        assert told.complete or told.error or told.status == 200
        if told.status >= 400:
            assert told.error
