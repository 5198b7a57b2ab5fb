"""What is read off answers of other dialects as they pass, however their bytes are cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric_server.dialects.endpoints import ENDPOINTS
from fabric_server.metering.events import AudioMeter, MessagesMeter, ResponsesMeter
from fabric_server.metering.ollama import MAX_LINE, LinesMeter, ollama_usage
from fabric_server.metering.ollama_show import MAX_SHOWN, ShowMeter
from fabric_server.metering.openai import BodyMeter, Meter
from fabric_server.metering.usage import Usage
from tests.site import DONE, chunk
from tests.streams import LINES, MESSAGES, RESPONSES, SPOKEN, line, named

STORIES = {
    "messages": (MessagesMeter, MESSAGES),
    "responses": (ResponsesMeter, RESPONSES),
    "lines": (LinesMeter, LINES),
    "audio": (AudioMeter, SPOKEN),
}


def cut(text: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({at for at in cuts if 0 < at < len(text)})
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def run(meter: Meter, pieces: list[bytes]) -> bytes:
    return b"".join([meter.feed(piece) for piece in pieces] + [meter.end()])


@pytest.mark.parametrize("name", STORIES)
@settings(deadline=None)
@given(cuts=st.lists(st.integers(1, 1500), max_size=30), crlf=st.booleans())
def test_in_any_pieces_a_stream_passes_as_it_is_and_is_counted_once(
    name: str, cuts: list[int], crlf: bool
) -> None:
    make, parts = STORIES[name]
    text = b"".join(parts)
    if crlf:
        text = text.replace(b"\n", b"\r\n")
    meter: Meter = make()
    assert run(meter, cut(text, cuts)) == text
    assert meter.usage == Usage(5, 7)
    assert meter.complete
    assert meter.done
    assert not meter.failed


@pytest.mark.parametrize("name", STORIES)
def test_until_its_last_part_no_stream_is_complete(name: str) -> None:
    make, parts = STORIES[name]
    for count in range(len(parts)):
        meter: Meter = make()
        run(meter, parts[:count])
        assert not meter.complete, parts[:count]
        assert not meter.done
        assert not meter.failed


@pytest.mark.parametrize("name", STORIES)
@settings(deadline=None)
@given(
    noise=st.text('data:{}[]" \n\rusagetypmdonerrsk.1', max_size=80).map(str.encode),
    cuts=st.lists(st.integers(1, 80), max_size=8),
)
def test_nothing_that_an_engine_sends_raises_or_is_changed(
    name: str, noise: bytes, cuts: list[int]
) -> None:
    make, parts = STORIES[name]
    text = noise + parts[-1][: len(noise)] + noise
    assert run(make(), cut(text, cuts)) == text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("messages", named("error", error={"type": "overloaded_error", "message": "x"})),
        ("messages", b'data: {"type": "error", "error": {"type": "api_error"}}\n\n'),
        ("messages", b'data: {"error":{"message":"x"}}\n\n'),
        ("responses", named("response.failed", response={"error": {"message": "x"}})),
        ("responses", named("error", code="x", message="x")),
        ("responses", b'data: {"error":{"message":"x"}}\n\n'),
        ("lines", line(error="the model runner has stopped")),
        ("lines", line(error={"message": "x"})),
        ("audio", b'data: {"error":{"message":"x"}}\n\n'),
    ],
)
def test_an_error_told_within_a_stream_is_noticed(name: str, text: bytes) -> None:
    make, parts = STORIES[name]
    for pieces in ([parts[0] + text], cut(parts[0] + text, list(range(2000)))):
        meter: Meter = make()
        told = run(meter, pieces)
        assert told.startswith(parts[0])
        assert b"error" in told[len(parts[0]) :]
        assert meter.failed
        assert not meter.done


def test_a_response_that_is_cut_short_by_its_own_limits_is_complete() -> None:
    meter = ResponsesMeter()
    run(meter, [named("response.incomplete", response={"usage": {"output_tokens": 7}})])
    assert meter.complete
    assert meter.usage == Usage(None, 7)


def test_an_event_too_long_to_be_read_still_says_what_it_is() -> None:
    meter = ResponsesMeter()
    long = named("response.completed", response={"output": "x" * 2_000_000})
    assert run(meter, cut(long, list(range(0, len(long), 16_000)))) == long
    assert meter.complete


def test_what_a_cache_had_of_a_prompt_is_part_of_it() -> None:
    usage = {"input_tokens": 2, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 5}
    meter = MessagesMeter()
    run(meter, [named("message_start", message={"usage": usage})])
    assert meter.usage.prompt_tokens == 107


def test_vllm_transcribes_in_chunks() -> None:
    meter = AudioMeter(False)
    text = chunk("Hel") + chunk(None) + DONE
    assert run(meter, [text]) == text
    assert meter.done


def test_a_last_line_without_an_end_counts() -> None:
    meter = LinesMeter()
    text = b"".join(LINES)[:-1]
    assert run(meter, [text]) == text
    assert meter.complete
    assert meter.torn, "nothing may follow it on the same line"


def test_a_line_without_end_does_not_fill_the_memory() -> None:
    meter = LinesMeter()
    passed = sum(len(meter.feed(b"x" * 65_536)) for _ in range(2 * MAX_LINE // 65_536))
    assert passed >= MAX_LINE
    assert meter.torn
    meter.feed(b"\n")
    assert not meter.torn


# ── answers in one piece ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "answer", "usage"),
    [
        ("/v1/responses", {"usage": {"input_tokens": 5, "output_tokens": 7}}, Usage(5, 7)),
        ("/v1/messages", {"usage": {"input_tokens": 5, "output_tokens": 7}}, Usage(5, 7)),
        ("/v1/messages/count_tokens", {"input_tokens": 5}, Usage()),
        ("/v1/audio/transcriptions", {"text": "x", "usage": {"type": "duration"}}, Usage()),
        ("/v1/rerank", {"results": [], "usage": {"total_tokens": 5}}, Usage(5, None)),
        ("/tokenize", {"count": 5, "tokens": [1]}, Usage()),
        ("/api/chat", {"done": True, "prompt_eval_count": 5, "eval_count": 7}, Usage(5, 7)),
        ("/api/embed", {"embeddings": [[1.0]], "prompt_eval_count": 5}, Usage(5, None)),
        ("/api/embeddings", {"embedding": [1.0]}, Usage()),
    ],
)
@settings(deadline=None, max_examples=20)
@given(cuts=st.lists(st.integers(1, 100), max_size=10))
def test_an_answer_in_one_piece_passes_as_it_is(
    path: str, answer: dict[str, Any], usage: Usage, cuts: list[int]
) -> None:
    text = json.dumps(answer).encode()
    meter = ENDPOINTS[path].body_meter()
    assert run(meter, cut(text, cuts)) == text
    assert meter.usage == usage


def test_the_last_figures_of_ollamas_answer_count() -> None:
    text = line(message={"arguments": {"eval_count": 99}}, prompt_eval_count=5, eval_count=7)
    assert ollama_usage(text) == Usage(5, 7)
    assert ollama_usage(b'{"eval_count":' + b"9" * 5000 + b"}") is None


# ── what is shown of a model ──────────────────────────────────────────────────────────────────


def test_a_model_is_shown_without_the_paths_of_its_node() -> None:
    shown = {
        "modelfile": "FROM /home/ada/.ollama/models/blobs/sha256-abc\n",
        "template": "{{ .Prompt }}",
        "details": {"parent_model": "/home/ada/x.gguf", "family": "llama"},
    }
    meter = ShowMeter()
    text = run(meter, cut(json.dumps(shown).encode(), [7, 50]))
    assert json.loads(text) == {
        "template": "{{ .Prompt }}",
        "details": {"parent_model": "", "family": "llama"},
    }
    assert not meter.failed


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b'"/home/ada"', b"[" * 5000])
def test_what_cannot_be_read_of_a_model_is_not_shown(text: bytes) -> None:
    meter = ShowMeter()
    assert list(json.loads(run(meter, [text]))) == ["error"]
    assert meter.failed


def test_a_model_of_endless_description_is_not_held() -> None:
    meter = ShowMeter()
    for _ in range(MAX_SHOWN // 65_536 + 10):
        assert meter.feed(b" " * 65_536) == b""
    assert list(json.loads(meter.end())) == ["error"]


def test_figures_of_rerankers_do_not_hide_others() -> None:
    meter = BodyMeter()
    run(meter, [b'{"usage":{"prompt_tokens":5,"completion_tokens":7,"total_tokens":12}}'])
    assert meter.usage == Usage(5, 7)
