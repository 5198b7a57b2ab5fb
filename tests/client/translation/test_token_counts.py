"""Tokens of a prompt: counted by vLLM's /tokenize, in part by llama-server's, else estimated."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from fabric_client.translation import LocalReply, TranslatedRequest, TranslationError
from fabric_client.translation.paths import path_handlers

CHAT = "/v1/chat/completions"
MESSAGES, RESPONSES = "/v1/messages/count_tokens", "/v1/responses/input_tokens"
PATHS = pytest.mark.parametrize("path", [MESSAGES, RESPONSES])


def ask(kind: str, path: str, native: Any = (CHAT, "/tokenize"), **fields: Any) -> Any:
    text = fields.pop("text", "Hello")
    said = (
        {"messages": [{"role": "user", "content": text}]} if path == MESSAGES else {"input": text}
    )
    translate = path_handlers(kind, native)[path]
    assert translate is not None
    return translate(json.dumps({"model": "m", **said, **fields}).encode())


def told(asked: TranslatedRequest, body: Any, status: int = 200) -> tuple[int, dict[str, str], Any]:
    answer = asked.response_filter
    assert answer is not None
    assert answer.head(status, [("content-length", "9")]) is None
    assert answer.feed(json.dumps(body).encode()) == b""
    document = json.loads(answer.end())
    assert answer.decided is not None
    return answer.decided[0], dict(answer.decided[1]), document


@PATHS
def test_vllm_counts(path: str) -> None:
    tool = (
        {"name": "t", "input_schema": {}} if path == MESSAGES else {"type": "function", "name": "t"}
    )
    asked = ask("vllm", path, tools=[tool])
    assert asked.path == "/tokenize"
    sent = json.loads(asked.body)
    assert sent["messages"] == [{"role": "user", "content": "Hello"}]
    assert sent["tools"][0]["function"]["name"] == "t"
    status, headers, answer = told(asked, {"count": 17, "max_model_len": 4096, "tokens": [1]})
    assert (status, answer["input_tokens"]) == (200, 17)
    assert "estimated" not in answer
    assert "x-fabric-estimated" not in headers
    assert (answer.get("object") == "response.input_tokens") is (path == RESPONSES)


@PATHS
def test_llama_server_counts_the_text(path: str) -> None:
    asked = ask("llama-server", path, text="Hello you")
    assert json.loads(asked.body)["content"] == "Hello you"
    status, headers, answer = told(asked, {"tokens": [1, 2, 3]})
    assert (status, answer["input_tokens"], answer["estimated"]) == (200, 7, True)
    assert headers["x-fabric-estimated"] == "true"


@PATHS
@pytest.mark.parametrize("kind", ["ollama", "openai", "lm-studio", "vllm", "llama-server"])
def test_others_are_not_asked(path: str, kind: str) -> None:
    reply = ask(kind, path, [CHAT], text="x" * 401)
    assert isinstance(reply, LocalReply)
    answer = json.loads(reply.body)
    assert (reply.status, answer["input_tokens"], answer["estimated"]) == (200, 105, True)
    assert ("x-fabric-estimated", "true") in reply.headers


def test_what_is_no_text_counts_too() -> None:
    image = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
    text = {"type": "input_text", "text": "What is this?"}
    one = json.loads(
        ask("ollama", RESPONSES, [CHAT], text=[{"role": "user", "content": [text]}]).body
    )
    two = json.loads(
        ask("ollama", RESPONSES, [CHAT], text=[{"role": "user", "content": [text, image]}]).body
    )
    assert two["input_tokens"] - one["input_tokens"] == 1000


@PATHS
def test_a_request_that_is_wrong_is_refused(path: str) -> None:
    with pytest.raises(TranslationError) as caught:
        ask("openai", path, [CHAT], tools=5)
    assert caught.value.param == "tools"


def test_an_error_has_the_dialects_form() -> None:
    error = {"type": "not_found_error", "message": "Not Found"}
    failed = told(ask("vllm", MESSAGES), {"detail": "Not Found"}, 404)
    assert failed[0] == 404
    assert failed[2] == {"type": "error", "error": error}
    for odd in ({"count": -1}, {"count": "x"}, {}, [], {"tokens": 5}):
        status, _, answer = told(ask("vllm", RESPONSES), odd)
        assert (status, "error" in answer) == (502, True)


@given(some.text(max_size=50))
def test_any_text_is_estimated(text: str) -> None:
    reply = ask("ollama", MESSAGES, [CHAT], text=text or "x")
    assert json.loads(reply.body)["input_tokens"] >= 4


def test_counting_can_be_done_in_a_worker() -> None:
    handlers = path_handlers("llama-server", [CHAT, "/tokenize"])
    asked = pickle.loads(pickle.dumps(handlers[RESPONSES]))(b'{"model":"m","input":"x"}')
    assert pickle.loads(pickle.dumps(asked)).path == "/tokenize"
