"""Engines' errors within streams, as clients of each API get them, in whatever pieces they come."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fabric_server.dialects.endpoints import ENDPOINTS
from fabric_server.metering.ollama import MAX_LINE
from fabric_server.metering.openai import MAX_EVENT, Meter
from tests.client.translation.odd_answers import CASES, load
from tests.site import chunk, event
from tests.streams import LINES, MESSAGES, RESPONSES, line, named

PATHS = {
    "/v1/chat/completions": [chunk("a")],
    "/v1/completions": [event({"choices": [{"text": "a", "finish_reason": None}]})],
    "/v1/messages": MESSAGES[:4],
    "/v1/responses": [
        RESPONSES[0],
        named("response.output_text.delta", sequence_number=1, delta="a"),
    ],
    "/api/chat": LINES[:2],
    "/api/generate": [line(response="a", done=False)],
}
"""How a stream of each path begins."""
paths = pytest.mark.parametrize("path", PATHS)
EVENTS = [path for path in PATHS if path.startswith("/v1/")]

USERS = ("invalid_request_error", "invalid_value")
ENGINES = ("server_error", "engine_error")
SPOKEN: dict[str, tuple[Any, str, tuple[str, str]]] = {
    # Ollama: server/routes.go and llm/server.go
    "runner": (
        {"error": "an error was encountered while running the model: unexpected EOF"},
        "an error was encountered while running the model: unexpected EOF",
        ENGINES,
    ),
    "runner's address": (
        {"error": 'Post "http://127.0.0.1:39781/completion": EOF'},
        'Post "(an address)": EOF',
        ENGINES,
    ),
    "blob": (
        {"error": "unable to load model: /home/joe/.ollama/models/blobs/sha256-6a07"},
        "unable to load model: sha256-6a07",
        ENGINES,
    ),
    # llama-server: format_error_response in tools/server
    "compute": (
        {"error": {"code": 500, "message": "Compute error.", "type": "server_error"}},
        "Compute error.",
        ENGINES,
    ),
    "context": (
        {
            "error": {
                "code": 400,
                "message": "the request exceeds the available context size (4096 tokens)",
                "type": "exceed_context_size_error",
                "n_prompt_tokens": 9014,
                "n_ctx": 4096,
            }
        },
        "the request exceeds the available context size (4096 tokens)",
        ("invalid_request_error", "context_length_exceeded"),
    ),
    # vLLM: create_streaming_error_response, today's and before 0.9
    "vllm": (
        {"error": {"message": "no", "type": "BadRequestError", "param": None, "code": 400}},
        "no",
        USERS,
    ),
    "vllm's place": (
        {
            "error": {
                "message": "EngineCore encountered an issue. See /home/joe/vllm/core.log:12.",
                "type": "InternalServerError",
                "param": None,
                "code": 500,
            }
        },
        "EngineCore encountered an issue. See core.log:12.",
        ENGINES,
    ),
    "older vllm": (
        {"object": "error", "message": "no", "type": "BadRequestError", "code": 400},
        "no",
        USERS,
    ),
    "anthropic's": (
        {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}},
        "Overloaded",
        ("server_error", "overloaded"),
    ),
    "fields at the top": (
        {"type": "error", "code": "rate_limit_exceeded", "message": "slow", "param": None},
        "slow",
        ("server_error", "rate_limit_exceeded"),
    ),
    "traceback": (
        {"error": "Traceback (most recent call last):\n  File '/home/joe/x.py'\nValueError: no"},
        "ValueError: no",
        ENGINES,
    ),
}
spoken = pytest.mark.parametrize("name", SPOKEN)


def meter_of(path: str) -> Meter:
    return ENDPOINTS[path].stream_meter(True)


def passed(path: str, pieces: list[bytes]) -> bytes:
    """Return what the client gets, an error among it."""
    meter = meter_of(path)
    told = b"".join([meter.feed(piece) for piece in pieces]) + meter.end()
    assert meter.failed
    return told


def error_in(path: str, text: bytes) -> dict[str, str]:
    """Return the error after the beginning of a stream, read as the API's documents say."""
    begin = b"".join(PATHS[path])
    assert text.startswith(begin)
    text = text[len(begin) :]
    if path.startswith("/api/"):
        found = json.loads(text)
        assert list(found) == ["error"]
        return {"message": found["error"]}
    head, _, data = text.rpartition(b"data: ")
    assert data.endswith(b"}\n\n")
    document = json.loads(data)
    error: dict[str, str] = document["error"]
    if path == "/v1/messages":
        assert head == b"event: error\n"
        assert document == {"type": "error", "error": error}
        assert set(error) == {"type", "message"}
    elif path == "/v1/responses":
        assert head == b"event: error\n"
        told = {name: error[name] for name in ("code", "message", "param")}
        assert document == {"type": "error", **told, "sequence_number": 2, "error": error}
    else:
        assert head in (b"", b"event: error\n")
        assert set(error) == {"message", "type", "param", "code"}
    return error


def written(path: str, document: Any) -> bytes:
    return line(**document) if path.startswith("/api/") else event(document)


def cuts(text: bytes) -> list[list[bytes]]:
    """Return a text in one piece, in pieces of some sizes, and byte by byte."""
    return [
        [text[at : at + size] for at in range(0, len(text), size)]
        for size in (len(text), 1000, 100, 7, 1)
    ]


@spoken
@paths
def test_an_error_within_a_stream_has_the_form_of_its_api(path: str, name: str) -> None:
    document, message, (kind, code) = SPOKEN[name]
    for pieces in cuts(b"".join(PATHS[path]) + written(path, document)):
        error = error_in(path, passed(path, pieces))
        assert error["message"].removeprefix("prompt is too long: ") == message
        if path == "/v1/messages":
            types = {"server_error": "api_error", "overloaded": "overloaded_error"}
            assert error["type"] == types.get(code, types.get(kind, kind))
            shortens = error["message"].startswith("prompt is too long: ")
            assert shortens == (code == "context_length_exceeded")
        elif path.startswith("/v1/"):
            assert (error["type"], error["code"]) == (kind, code)


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/chat/completions", "messages"),
        ("/v1/completions", "prompt"),
        ("/v1/responses", "input"),
        ("/v1/audio/transcriptions", None),
    ],
)
def test_of_a_prompt_that_is_too_long_the_field_is_named(path: str, field: str | None) -> None:
    for param in (None, "max_tokens"):
        error = {"message": "the prompt exceeds the context size", "code": 400, "param": param}
        told = passed(path, [event({"error": error})])
        assert json.loads(told.rpartition(b"data: ")[2])["error"]["param"] == (param or field)


@pytest.mark.parametrize("case", ["F01-200-err", "F05-vllm-error"])
@paths
def test_errors_of_real_answers_are_told(path: str, case: str) -> None:
    body = load(CASES / f"{case}.http").body
    data = next(one for one in body.split(b"\n\n") if b'rror"' in one).removeprefix(b"data: ")
    text = b"".join(PATHS[path]) + written(path, json.loads(data))
    words = {"F01-200-err": "CUDA out of memory", "F05-vllm-error": "boom"}
    assert error_in(path, passed(path, [text]))["message"] == words[case]


@pytest.mark.parametrize("path", EVENTS)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"error: %b\n\n", "at x.cu"),
        (b"event: error\ndata: %b\n\n", "at x.cu"),
        (b"event:error\r\ndata:%b\r\n\r\n", "at x.cu"),
        (b"event: error\ndata: CUDA error at /home/joe/x.cu\n\n", "CUDA error at x.cu"),
        (b'event: error\ndata: "CUDA error at /home/joe/x.cu"\n\n', "CUDA error at x.cu"),
        (b'event: error\ndata: {"path": /home/joe\n\n', "The engine reported an error."),
        (b"event: error\ndata: <html>/home/joe\n\n", "The engine reported an error."),
        (b"event: error\n\n", "The engine reported an error."),
    ],
)
def test_an_error_in_an_odd_event_is_told(path: str, text: bytes, message: str) -> None:
    begin = b"".join(PATHS[path])
    said = text.replace(b"%b", b'{"error": {"message": "at /home/joe/x.cu"}}')
    for pieces in cuts(begin + said):
        assert error_in(path, passed(path, pieces))["message"] == message


@paths
def test_a_line_or_event_that_lacks_its_end_is_told(path: str) -> None:
    text = b"".join(PATHS[path]) + written(path, {"error": "at /home/joe/x"}).rstrip()
    for pieces in cuts(text):
        assert error_in(path, passed(path, pieces))["message"] == "at x"


@paths
def test_of_many_errors_only_the_first_is_told(path: str) -> None:
    begin, other = b"".join(PATHS[path]), PATHS[path][-1]
    errors = b"".join(written(path, {"error": f"no {number}"}) for number in range(100))
    told = passed(path, [begin, errors[:500], errors[500:] + other, errors])
    assert told.endswith(other)
    assert error_in(path, told.removesuffix(other))["message"] == "no 0"


@paths
def test_an_error_that_is_too_long_is_not_shown(path: str) -> None:
    limit = MAX_LINE if path.startswith("/api/") else MAX_EVENT
    after = PATHS[path][-1]
    text = b"".join(PATHS[path])
    text += written(path, {"error": "at /home/joe " * (2 * limit // 13) + "secret"}) + after
    pieces = [text[at : at + 65_536] for at in range(0, len(text), 65_536)]
    told = passed(path, pieces)
    assert told.endswith(after)
    error = error_in(path, told.removesuffix(after))
    assert error["message"] == "The engine's error is too long to be shown."


def test_a_response_that_has_failed_keeps_its_other_fields() -> None:
    response = {"id": "r", "status": "failed", "output": [{"text": "a"}], "model": "tiny"}
    error = {"code": "server_error", "message": "CUDA error at /home/joe/x.cu", "file": "/y/z"}
    failed = named("response.failed", sequence_number=9, response={**response, "error": error})
    begin = b"".join(RESPONSES[:2])
    for text in (failed, failed.partition(b"\n")[2]):
        for pieces in cuts(begin + text):
            told = passed("/v1/responses", pieces).removeprefix(begin)
            name, data = told.split(b"\ndata: ")
            assert name == b"event: response.failed"
            shown = {"code": "server_error", "message": "CUDA error at x.cu"}
            assert json.loads(data) == {
                "type": "response.failed",
                "sequence_number": 9,
                "response": {**response, "error": shown},
            }


def test_a_response_that_fails_because_of_its_prompt_says_so() -> None:
    error = {"message": "the request exceeds the available context size"}
    told = passed("/v1/responses", [named("response.failed", response={"error": error})])
    assert b'"code":"context_length_exceeded"' in told


@pytest.mark.parametrize("path", EVENTS)
def test_text_about_errors_passes_as_it_is(path: str) -> None:
    tricks = ('"error":{"message":"/home/joe"}', 'event: error\ndata: {"error":"x"}', "error")
    texts = {
        "/v1/messages": lambda said: named("content_block_delta", delta={"text": said}),
        "/v1/responses": lambda said: named("response.output_text.delta", delta=said, error=None),
    }
    write = texts.get(path, chunk)
    text = b"".join(write(trick) for trick in tricks)
    meter = meter_of(path)
    assert meter.feed(text) + meter.end() == text
    assert not meter.failed


BESIDES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"choices": [{"index": 0, "delta": {"content": "Hello"}}]},
    "/v1/completions": {"choices": [{"index": 0, "text": "Hello"}]},
    "/v1/messages": {"type": "content_block_delta", "delta": {"text": "Hello"}},
    "/v1/responses": {"type": "response.output_text.delta", "delta": "Hello"},
    "/api/chat": {"model": "m", "message": {"content": "Hello"}, "done": False},
    "/api/generate": {"model": "m", "response": "Hello", "done": False},
}
"""Events with text, of each path."""


@pytest.mark.parametrize("nothing", ["", None, {}, [], False, {"code": 0, "message": ""}], ids=repr)
@paths
def test_an_empty_error_beside_text_is_none(path: str, nothing: Any) -> None:
    text = written(path, {"error": nothing, **BESIDES[path]})
    text += written(path, {**BESIDES[path], "error": nothing})
    for pieces in cuts(text):
        meter = meter_of(path)
        assert b"".join([meter.feed(piece) for piece in pieces]) + meter.end() == text
        assert not meter.failed


@pytest.mark.parametrize("path", EVENTS)
def test_an_event_whose_name_only_begins_like_an_error_is_none(path: str) -> None:
    text = b"event: error-details\n" + written(path, BESIDES[path])
    text += b"event: response.failed-not\n" + written(path, BESIDES[path])
    meter = meter_of(path)
    assert meter.feed(text) + meter.end() == text
    assert not meter.failed


def test_a_long_line_with_an_empty_error_passes() -> None:
    text = line(error="", model="m", response="a" * MAX_LINE, done=False)
    meter = meter_of("/api/generate")
    assert meter.feed(text[:-9]) + meter.feed(text[-9:]) + meter.end() == text
    assert not meter.failed


@pytest.mark.parametrize("path", EVENTS)
def test_a_long_event_with_an_empty_error_passes(path: str) -> None:
    text = b'data: {"error": {}, "choices": [], "text": "%b"}\n\n' % (b"a" * MAX_EVENT)
    meter = meter_of(path)
    assert meter.feed(text[:-9]) + meter.feed(text[-9:]) + meter.end() == text
    assert not meter.failed


@pytest.mark.parametrize(
    "error",
    [
        {"error": {}},
        {"error": ""},
        {"error": {"message": ""}},
        {"error": {"code": 500, "type": "server_error", "message": None}},
        {"object": "error", "code": 500},
        {"type": "error"},
        {"type": "error", "error": {}},
    ],
    ids=repr,
)
@paths
def test_an_error_without_a_message_says_that_there_is_one(path: str, error: Any) -> None:
    told = passed(path, [b"".join(PATHS[path]) + written(path, error)])
    assert b"The engine reported an error." in told
    assert b"{}" not in told


def test_a_response_that_fails_without_a_message_says_so() -> None:
    failed = named("response.failed", sequence_number=2, response={"id": "r"})
    told = json.loads(passed("/v1/responses", [failed]).partition(b"\ndata: ")[2])
    error = {"code": "server_error", "message": "The engine reported an error."}
    assert told["response"] == {"id": "r", "error": error}


def test_fields_that_tell_more_are_the_message_of_an_error_that_has_none() -> None:
    told = passed("/api/chat", [line(error={"code": 500, "reason": "no slot"})])
    assert json.loads(told) == {"error": '{"code":500,"reason":"no slot"}'}


PLACE = "/home/me/secret.gguf"


@pytest.mark.parametrize("begin", ["event: response.failed\n", ""])
@pytest.mark.parametrize(
    "fields",
    [
        {"error": {"message": f"no {PLACE}"}, "response": {"id": "r"}},
        {"response": {"id": "r", "error": {"message": f"no {PLACE}", "file": PLACE}}},
        {"error": PLACE, "response": {"id": "r", "error": {"message": "no secret.gguf"}}},
        {
            "path": PLACE,
            "response": {
                "id": "r",
                "error": f"no {PLACE}",
                "status_details": {"error": {"message": PLACE}},
                "incomplete_details": {"reason": PLACE},
            },
        },
    ],
    ids=["top", "within", "both", "details"],
)
def test_a_response_that_has_failed_names_no_place(begin: str, fields: dict[str, Any]) -> None:
    failed = {"sequence_number": 3, **fields, "type": "response.failed"}
    told = passed("/v1/responses", [f"{begin}data: {json.dumps(failed)}\n\n".encode()])
    details = {"code": "server_error", "message": "no secret.gguf"}
    assert json.loads(told.partition(b"\ndata: ")[2]) == {
        "type": "response.failed",
        "sequence_number": 3,
        "response": {"id": "r", "error": details},
    }


def test_a_failed_response_without_an_error_names_no_place_either() -> None:
    response = {"id": "r", "status_details": {"reason": PLACE}}
    told = passed("/v1/responses", [event({"type": "response.failed", "response": response})])
    assert b"secret" not in told
    assert b"The engine reported an error." in told


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_an_error_beside_text_has_the_same_form_and_the_text_stays(path: str) -> None:
    error = {"code": 502, "message": f"no {PLACE}"}
    choice = {**BESIDES[path]["choices"][0], "finish_reason": "error"}
    first = event({"id": "c", "choices": [choice], "error": error})
    text = first + event({"error": error, "choices": [choice]}) + event({"error": error})
    for pieces in cuts(text):
        told = passed(path, pieces)
        chunks = [json.loads(one.removeprefix(b"data: ")) for one in told.split(b"\n\n")[:-1]]
        shown = {
            "message": "no secret.gguf",
            "type": "server_error",
            "param": None,
            "code": "engine_error",
        }
        assert chunks == [{"id": "c", "choices": [choice], "error": shown}, {"choices": [choice]}]


@pytest.mark.parametrize("path", EVENTS)
def test_fields_of_an_error_that_a_chunk_does_not_have_are_left_out(path: str) -> None:
    chunk = {"id": "c", "choices": BESIDES["/v1/completions"]["choices"]}
    for error in ({"type": "error"}, {"error": PLACE}, {"object": "error"}):
        text = event({**chunk, **error, "message": PLACE, "file": PLACE})
        assert b"/home" not in passed(path, [text, text])


@pytest.mark.parametrize("odd", [b"NaN", b"-Infinity", b'"\xff"', b'"\\ud800"', b'"\t"'], ids=repr)
@paths
def test_an_error_is_found_in_json_that_only_some_can_read(path: str, odd: bytes) -> None:
    said = b'{"load": %b, "error": {"message": "at /home/joe/x.cu"}}' % odd
    text = said + b"\n" if path.startswith("/api/") else b"data: %b\n\n" % said
    for pieces in cuts(b"".join(PATHS[path]) + text):
        assert error_in(path, passed(path, pieces))["message"] == "at x.cu"


def test_what_a_failed_response_keeps_can_be_written() -> None:
    text = b'data: {"a": NaN, "type": "response.failed", "error": "\\udc00 no", '
    text += b'"response": {"id": "\\ud800", "temperature": NaN}}\n\n'
    told = json.loads(passed("/v1/responses", [text]).partition(b"\ndata: ")[2])
    error = {"code": "server_error", "message": "? no"}
    assert told["response"] == {"id": "?", "temperature": None, "error": error}
