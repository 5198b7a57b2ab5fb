"""Engines' errors as users get them: their dialect, their mistakes, and nothing of the owner's."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from fabric_client.offer.error_filter import MAX_ERROR, ErrorFilter
from fabric_client.offer.private_text import INSTEAD, PrivateText

OWN = "/home/joé/models/tiny.gguf"
PRIVATE = PrivateText({OWN: "tiny"}, {"secret:latest"})
CHAT = "/v1/chat/completions"


def told(body: Any, status: int = 400, path: str = CHAT) -> tuple[int, Any]:
    """Return the user's status and document for an engine's error."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    errors = ErrorFilter(PRIVATE, path)
    head = [("content-type", "text/plain"), ("content-length", "9"), ("retry-after", "3")]
    assert errors.head(status, head) is None
    assert errors.feed(data[:9]) + errors.feed(data[9:]) == b""
    document = json.loads(errors.end())
    assert errors.decided is not None
    assert errors.decided[1] == [("content-type", "application/json"), ("retry-after", "3")]
    return errors.decided[0], document


def openai(message: str, code: str, kind: str = "invalid_request_error", param: Any = None) -> Any:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


SHAPES: dict[str, Any] = {
    "llama-server": {"error": {"code": 400, "message": "no", "type": "invalid_request_error"}},
    "vllm": {"error": {"message": "no", "type": "BadRequestError", "param": None, "code": 400}},
    "older vllm": {"object": "error", "message": "no", "type": "BadRequestError", "code": 400},
    "ollama": {"error": "no"},
    "fastapi": {"detail": "no"},
    "kobold": {"detail": {"msg": "no", "type": "bad_input"}},
    "anthropic": {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}},
    "tgi": {"error": "no", "error_type": "validation"},
    "stream": b'data: {"error": {"message": "no"}}\n\ndata: [DONE]\n\n',
    "text": b"no",
}
shapes = pytest.mark.parametrize("body", SHAPES.values(), ids=SHAPES)


@shapes
def test_an_error_of_any_shape_gets_that_of_the_users_dialect(body: Any) -> None:
    assert told(body) == (400, openai("no", "invalid_value"))
    assert told(body, path="/v1/responses") == (400, openai("no", "invalid_value"))
    kind = {"type": "invalid_request_error", "message": "no"}
    assert told(body, path="/v1/messages") == (400, {"type": "error", "error": kind})
    assert told(body, path="/api/chat") == (400, {"error": "no"})


def test_what_the_engine_says_of_code_and_field_is_kept_if_it_has_openais_form() -> None:
    said = {"error": {"message": "no", "code": "too_warm", "param": "temperature"}}
    assert told(said) == (400, openai("no", "too_warm", param="temperature"))
    odd = {"error": {"message": "no", "code": "Not a code", "param": ["x"], "type": 7}}
    assert told(odd) == (400, openai("no", "invalid_value"))


def test_a_field_that_does_not_fit_is_named() -> None:
    for field, text in (("n", "Field 'n': it must be 1"), ("prompt", "key 'prompt' not found")):
        assert told({"error": {"message": text}})[1] == openai(text, "invalid_value", param=field)
    rows = [
        {"type": "float_type", "loc": ["body", "temperature"], "msg": "must be a number"},
        {"type": "missing", "loc": ["body", "messages", 0, "role"], "msg": "Field required"},
    ]
    message = "'temperature': must be a number; 'messages.0.role': Field required"
    assert told({"detail": rows}, 422) == (
        400,
        openai(message, "invalid_value", param="temperature"),
    )


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (404, "model_not_found", "invalid_request_error"),
        (413, "body_too_large", "invalid_request_error"),
        (418, "invalid_value", "invalid_request_error"),
        (429, "rate_limit_exceeded", "rate_limit_error"),
        (500, "engine_error", "server_error"),
        (501, "not_supported", "server_error"),
        (503, "overloaded", "server_error"),
    ],
)
def test_a_code_is_always_a_word(status: int, code: str, kind: str) -> None:
    said = {"error": {"message": "no", "code": status}}
    assert told(said, status) == (status, openai("no", code, kind))


@pytest.mark.parametrize("status", [400, 413, 500])
@pytest.mark.parametrize(
    "message",
    [
        "the request exceeds the available context size. try increasing the context size",
        "request (9000 tokens) exceeds the available context size (4096 tokens), try increasing it",
        "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens"
        " (4900 in the messages, 100 in the completion).",
        "The decoder prompt (length 9) is longer than the maximum model length of 4.",
        "the input length exceeds the context length",
        "input is too large to process. increase the physical batch size",
        "The input (9 tokens) is longer than the model's context length (4 tokens).",
        "`inputs` tokens + `max_new_tokens` must be <= 4096.",
    ],
)
def test_a_prompt_that_is_too_long_is_the_users(status: int, message: str) -> None:
    said = {"error": {"message": message, "type": "server_error", "code": status}}
    wanted = openai(message, "context_length_exceeded", param="messages")
    assert told(said, status) == (400, wanted)
    shortens = "completion" not in message and "max_new_tokens" not in message
    words = f"prompt is too long: {message}" if shortens else message
    kind = {"type": "invalid_request_error", "message": words}
    assert told(said, status, "/v1/messages")[1] == {"type": "error", "error": kind}
    assert told(said, status, "/v1/embeddings")[1]["error"]["param"] == "input"


@pytest.mark.parametrize("status", [400, 404])
@pytest.mark.parametrize(
    "message",
    ["The model `x` does not exist.", "model 'llama3.2:1b' not found", "unknown model: x"],
)
def test_a_model_that_is_not_there_is_called_so(status: int, message: str) -> None:
    assert told({"error": message}, status) == (
        404,
        openai(message, "model_not_found", param="model"),
    )


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("Failed to initialize samplers: failed to parse grammar", "invalid_value"),
        ("JSON schema conversion failed: Unrecognized schema", "invalid_value"),
        ("invalid JSON schema in format", "invalid_value"),
        ("Unable to generate parser for this template", "invalid_value"),
        ("Conversation roles must alternate user/assistant/user/assistant/...", "invalid_value"),
        ("[json.exception.type_error.302] type must be string, but is number", "invalid_value"),
        ('"tiny" does not support tools', "invalid_value"),
        ('"prompt" must not be empty', "invalid_value"),
        ("Failed to create new sequence: no input provided", "invalid_value"),
        ("Input content cannot be empty", "invalid_value"),
        ('"prompt" elements must be a string, a list of tokens, a JSON object', "invalid_value"),
        (
            "image input is not supported - hint: provide the mmproj",
            "invalid_image",
        ),
        ("Failed to load image or audio file", "invalid_image"),
        ("failed to decode image bytes", "invalid_image"),
        ("image: unknown format", "invalid_image"),
        ("illegal base64 data at input byte 4", "invalid_image"),
        ("this model is missing data required for image input", "invalid_image"),
    ],
)
def test_a_users_mistake_is_400_whatever_the_engine_says(message: str, code: str) -> None:
    said = {"error": {"code": 500, "message": message, "type": "server_error"}}
    assert told(said, 500) == (400, openai(message, code))
    assert told({"error": message}, 500, "/api/chat") == (400, {"error": message})
    assert told({"error": message}, 500, "/v1/messages")[0] == 400


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory while it did decode image",
        "llama runner process has terminated: template",
        "model requires more system memory (9 GiB) than is available",
        "unable to load model: context size",
        "This server does not support embeddings. Start it with `--embeddings`",
        "something else",
        "the server must be restarted",
        "error loading: model file not found",
    ],
)
def test_a_failure_of_the_engine_stays_one(message: str) -> None:
    assert told({"error": message}, 500) == (500, openai(message, "engine_error", "server_error"))


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (f"can't load {OWN}", "can't load tiny"),
        ("no '/home/joe/other/mmproj.gguf': missing", "no 'mmproj': missing"),
        (r"can't open C:\Users\joe\x.gguf.", "can't open x."),
        ("can't open ~/x/y.bin", "can't open y.bin"),
        ("file:///home/joe/x.gguf", "x"),
        ("at /home/joe/.cache/hub/models--Q--W/snapshots/1a2b, sorry", "at Q/W, sorry"),
        ("try one of: secret:latest, tiny, secret", f"try one of: {INSTEAD}, tiny, {INSTEAD}"),
        ("secret-2, my-secret and secret:7b are others", None),
        ("POST /v1/chat/completions is not /metrics", None),
        ("1/2 and/or 12:30:45, std::bad_alloc, expecting ::= at", None),
        ('Post "http://127.0.0.1:34567/x": EOF', 'Post "(an address)": EOF'),
        ("see https://joe.example.org/errors.", "see (an address)."),
        ("dial tcp 192.168.1.5:8000: refused", "dial tcp (an address): refused"),
        ("from [fe80::1%eth0]:80 and 2001:db8::7", "from (an address) and (an address)"),
        ("localhost:11434 or joes-pc.local:80", "(an address) or (an address)"),
    ],
)  # fmt: skip
def test_errors_are_told_without_places_names_and_addresses(said: str, shown: str | None) -> None:
    shown = said if shown is None else shown
    assert PRIVATE.hide(said) == shown
    assert told({"error": {"message": said, "code": 500}}, 500)[1]["error"]["message"] == shown
    assert told(said.encode(), 500)[1]["error"]["message"] == shown


def test_a_path_that_the_engine_lacks_is_no_missing_model() -> None:
    assert told({"detail": "Not Found"}, 404) == (404, openai("Not Found", "not_found"))


def test_a_page_or_a_traceback_is_not_shown() -> None:
    status, document = told(b"<html><h1>Joe's</h1></html>", 502)
    assert (status, document["error"]["message"]) == (502, "The engine answered with status 502.")
    text = 'Traceback (most recent call last):\n  File "/home/joe/x.py", line 7\nKeyError: 7'
    assert told({"detail": text}, 500)[1]["error"]["message"] == "KeyError: 7"
    assert told(b"", 500)[1]["error"]["message"] == "The engine answered with status 500."


def test_a_very_long_error_is_not_shown() -> None:
    assert "too long" in told(b"x" * (MAX_ERROR + 2))[1]["error"]["message"]
    assert len(told(b"x" * MAX_ERROR)[1]["error"]["message"]) == 2000


@given(some.binary(max_size=80), some.integers(400, 599))
def test_any_bytes_are_an_error(body: bytes, status: int) -> None:
    assert told(body, status)[1]["error"]["message"]


@pytest.mark.parametrize("shape", [json.dumps, lambda said: said["error"]])
def test_what_is_private_is_found_before_a_message_is_cut(shape: Any) -> None:
    for private in ("/home/ann/private/x.gguf", "sk-own-key", "secret:latest"):
        for length in (1985, 1990, 1995):
            said = shape({"error": "a " * (length // 2) + private}).encode()
            errors = ErrorFilter(PrivateText({}, {"secret:latest"}, "sk-own-key"), CHAT)
            errors.head(400, [])
            errors.feed(said)
            message = json.loads(errors.end())["error"]["message"]
            assert len(message) <= 2000
            assert not any(part in message for part in ("/ho", "sk-", "secr"))
