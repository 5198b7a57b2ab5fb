"""Odd answers of engines, and what a user gets of them in each dialect."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fabric_client.reasoning import ReasoningFilter
from fabric_client.translation import (
    FilterChain,
    Headers,
    ResponseFilter,
    TranslatedRequest,
    messages,
    responses,
)
from fabric_client.translation.ollama import Ollama

CASES = Path(__file__).parents[2] / "cases" / "answers"
DIALECTS = ("messages", "responses", "ollama", "chat")
USER = [{"role": "user", "content": "hi"}]


@dataclass
class Told:
    """What a user gets, read strictly."""

    status: int
    text: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)
    """Names and arguments of tool calls."""
    complete: bool = False
    error: str = ""


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Headers
    body: bytes


def load(path: Path) -> Answer:
    """Read a case: an HTTP answer as it was on the wire."""
    head, _, body = path.read_bytes().partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)]
    if ("transfer-encoding", "chunked") in headers:
        body = b"".join(_chunks(body))
    return Answer(int(first.split()[1]), headers, body)


def _chunks(data: bytes) -> Iterable[bytes]:
    while True:
        size, _, data = data.partition(b"\r\n")
        if not int(size, 16):
            return
        yield data[: int(size, 16)]
        data = data[int(size, 16) + 2 :]


def translated(answer: Answer, dialect: str, *, stream: bool, cut: int = 0) -> Told:
    """Return what a user of ``dialect`` gets; the body comes in pieces of ``cut`` bytes."""
    found = _filter(dialect, stream)
    head = found.head(answer.status, answer.headers)
    step = cut or len(answer.body) or 1
    pieces = [answer.body[at : at + step] for at in range(0, len(answer.body), step)]
    data = b"".join([found.feed(piece) for piece in pieces]) + found.end()
    status, headers = head or found.decided or (0, [])
    kind = dict(headers).get("content-type", "")
    if dialect == "chat":
        return _chat(status, kind, data, stream)
    return _READERS[dialect](status, kind, data)


def _filter(dialect: str, stream: bool) -> ResponseFilter:
    if dialect == "chat":
        return ReasoningFilter(stream)
    request = _request(dialect, stream)
    assert isinstance(request, TranslatedRequest) and request.response_filter is not None
    return FilterChain(ReasoningFilter(), request.response_filter)


def _request(dialect: str, stream: bool) -> object:
    common = {"model": "m", "stream": stream}
    if dialect == "messages":
        tools = [{"name": "w", "input_schema": {"type": "object"}}]
        body = {**common, "max_tokens": 9, "messages": USER, "tools": tools}
        return messages.translate(json.dumps(body).encode())
    if dialect == "responses":
        tool = {"type": "function", "name": "w", "parameters": {}}
        return responses.translate(json.dumps({**common, "input": "hi", "tools": [tool]}).encode())
    return Ollama("openai", lambda: 1).chat(json.dumps({**common, "messages": USER}).encode())


def _events(data: bytes) -> list[Any]:
    text = data.decode()  # strictly
    assert not text or text.endswith("\n\n")
    found = []
    for block in text.split("\n\n"):
        for line in block.splitlines():
            if line.startswith("data:") and line[5:].strip() not in ("[DONE]", "", "null"):
                found.append(_load(line[5:]))
    return found


def _load(text: str | bytes) -> Any:
    def wrong(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=wrong)


def _messages(status: int, kind: str, data: bytes) -> Told:
    told = Told(status)
    if kind.startswith("application/json"):
        document = _load(data)
        if document["type"] == "error":
            told.error = document["error"]["message"]
            return told
        for block in document["content"]:
            if block["type"] == "text":
                told.text += block["text"]
            elif block["type"] == "tool_use":
                told.calls.append((block["name"], block["input"]))
        told.complete = document["stop_reason"] is not None
        return told
    arguments: dict[int, str] = {}
    names: dict[int, str] = {}
    open_block: int | None = None
    for event in _events(data):
        match event["type"]:
            case "content_block_start":
                assert open_block is None
                open_block = event["index"]
                if event["content_block"]["type"] == "tool_use":
                    names[open_block], arguments[open_block] = event["content_block"]["name"], ""
            case "content_block_delta":
                assert event["index"] == open_block
                told.text += event["delta"].get("text", "")
                if "partial_json" in event["delta"]:
                    arguments[event["index"]] += event["delta"]["partial_json"]
            case "content_block_stop":
                open_block = None
            case "message_stop":
                told.complete = True
            case "error":
                told.error = event["error"]["message"]
    told.calls = [(name, json.loads(arguments[at] or "{}")) for at, name in names.items()]
    return told


def _responses(status: int, kind: str, data: bytes) -> Told:
    told = Told(status)
    if kind.startswith("application/json"):
        return _response(told, _load(data))
    for event in _events(data):
        if event["type"] in ("response.output_text.delta", "response.refusal.delta"):
            told.text += event["delta"]
        elif event["type"] in ("response.completed", "response.incomplete", "response.failed"):
            streamed, told.text = told.text, ""
            _response(told, event["response"])
            assert told.text == streamed or told.error
            told.text = streamed
    return told


def _response(told: Told, document: Any) -> Told:
    if document.get("error"):
        told.error = document["error"]["message"]
        return told
    for item in document["output"]:
        if item["type"] == "message":
            told.text += "".join(part.get("text") or part["refusal"] for part in item["content"])
        elif item["type"] == "function_call":
            told.calls.append((item["name"], json.loads(item["arguments"])))
    told.complete = document["status"] in ("completed", "incomplete")
    return told


def _ollama(status: int, kind: str, data: bytes) -> Told:
    told = Told(status)
    for line in data.splitlines():
        document = _load(line)
        if "error" in document:
            told.error = document["error"]
            continue
        told.text += document["message"]["content"]
        for call in document["message"].get("tool_calls", []):
            told.calls.append((call["function"]["name"], call["function"]["arguments"]))
        told.complete = document["done"]
    return told


def _chat(status: int, kind: str, data: bytes, stream: bool) -> Told:
    told = Told(status)
    streamed = not kind.startswith("application/json")
    if status == 200:
        assert kind == ("text/event-stream" if stream else "application/json")
    for document in _events(data) if streamed else [_load(data)]:
        if "error" in document:
            told.error = document["error"]["message"]
            continue
        for choice in document.get("choices", []):
            message = choice["delta"] if streamed else choice["message"]
            assert isinstance(message.get("content"), str | None)
            told.text += message.get("content") or ""
            told.complete = told.complete or choice.get("finish_reason") not in (None, "", "null")
            for call in () if streamed else message.get("tool_calls", ()):
                function = call["function"]
                told.calls.append((function["name"], json.loads(function["arguments"] or "{}")))
    return told


_READERS = {"messages": _messages, "responses": _responses, "ollama": _ollama}
