"""Answers of engines at /v1/chat/completions, for tests of their translation.

``recorded`` returns what a real llama-server sent with the tiny model.  Reasoning and tool calls,
which that model can't produce, have the format that vLLM and llama-server document.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from fabric_client.translation import RequestTranslator, TranslatedRequest, TranslationError

Json = dict[str, Any]
EXCHANGES = Path(__file__).parent / "client" / "translation" / "exchanges"


def recorded(name: str) -> bytes:
    return (EXCHANGES / f"llama_server_{name}").read_bytes()


def chunk(delta: Json | None = None, finish: str | None = None, **more: Any) -> Json:
    choice = {"index": 0, "delta": delta or {}, "logprobs": None, "finish_reason": finish}
    head = {"id": "chatcmpl-7", "object": "chat.completion.chunk", "created": 1795281791}
    return {**head, "model": "m", "choices": [choice], **more}


def usage(prompt: int, completion: int, *, cached: int = 0, reasoning: int = 0) -> Json:
    counts = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }
    return chunk(choices=[], usage=counts)


def call(index: int, arguments: str, id: str | None = None, name: str | None = None) -> Json:
    """Return a piece of a tool call; the first has id and name."""
    function: Json = {"arguments": arguments}
    piece: Json = {"index": index, "function": function}
    if id is not None:
        piece |= {"id": id, "type": "function"}
        function["name"] = name
    return {"tool_calls": [piece]}


def sse(*chunks: Json, done: bool = True) -> bytes:
    events = [b"data: " + json.dumps(part).encode() + b"\n\n" for part in chunks]
    return b"".join(events) + (b"data: [DONE]\n\n" if done else b"")


REASONING_AND_TEXT = sse(
    chunk({"role": "assistant", "content": ""}),
    chunk({"reasoning_content": "Two ", "reasoning": "Two "}),  # as normalised
    chunk({"reasoning": "and two."}),  # vLLM
    chunk({"content": "Fo"}),
    chunk({"content": "ur \u2713"}),
    chunk({}, "stop", stop_reason=None),
    usage(20, 9, cached=16, reasoning=5),
)
"""An answer of vLLM with a reasoning parser."""
TOOL_CALLS = sse(
    chunk({"role": "assistant", "content": None}),
    chunk({"content": "Let me look."}),
    chunk(call(0, "", "call_a", "weather")),
    chunk(call(0, '{"city": ')),
    chunk(call(0, '"Bern"}')),
    chunk(call(1, '{"zone":"CET"}', "call_b", "time")),
    chunk({}, "tool_calls"),
    usage(30, 12),
)
"""Two calls as llama-server and vLLM send them: one after the other, arguments in pieces."""


def whole(message: Json, finish: str = "stop", **more: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    head = {"id": "chatcmpl-7", "object": "chat.completion", "created": 1795281791, "model": "m"}
    counts = {"prompt_tokens": 20, "completion_tokens": 9, "total_tokens": 29}
    return json.dumps({**head, "choices": [choice], "usage": counts, **more}).encode()


def content_type(answer: bytes) -> str:
    return "text/event-stream" if answer.startswith((b"data:", b":")) else "application/json"


def translated(
    request: TranslatedRequest,
    answer: bytes | Iterable[bytes],
    status: int = 200,
    end: bool = True,
) -> bytes:
    """Return all that the user gets of an engine's answer, in one piece or several."""
    pieces = [answer] if isinstance(answer, bytes) else list(answer)
    request.response_filter.head(status, [("content-type", content_type(b"".join(pieces)))])
    sent = b"".join(request.response_filter.feed(piece) for piece in pieces)
    return sent + request.response_filter.end() if end else sent


def events(stream: bytes) -> list[Json]:
    """Return the events of a user's stream; the name of each must be its type."""
    found = []
    for block in stream.decode().split("\n\n")[:-1]:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


class Engine:
    """An engine behind a translator, as the transport of an official client."""

    def __init__(
        self, translate: Callable[[bytes], TranslatedRequest], answer: bytes, status: int = 200
    ):
        self.received: Json = {}
        self._translate = translate
        self._answer = answer
        self._status = status

    def client(self) -> httpx2.Client:
        return httpx2.Client(transport=httpx2.MockTransport(self._handle))

    def _handle(self, request: httpx2.Request) -> httpx2.Response:
        request = self._translate(request.content)
        self.received = json.loads(request.body)
        engine_head = [("content-type", content_type(self._answer)), ("content-length", "1")]
        answer = request.response_filter
        decided = answer.head(self._status, engine_head)
        body = answer.feed(self._answer) + answer.end()
        status, headers = decided or answer.decided
        return httpx2.Response(status, headers=headers, content=body)


class TranslatorCase:
    """A translator, and a request that tests change: a field with the value ``...`` is left out."""

    def __init__(self, translate: RequestTranslator, **defaults: Any) -> None:
        self._translate = translate
        self._defaults = defaults

    def body(self, **fields: Any) -> bytes:
        body = {**self._defaults, **fields}
        return json.dumps({name: value for name, value in body.items() if value != ...}).encode()

    def chat(self, **fields: Any) -> Json:
        """Return the body of the engine's request."""
        request = self._translate(self.body(**fields))
        assert isinstance(request, TranslatedRequest)
        assert request.path == "/v1/chat/completions"
        return json.loads(request.body)

    def rejection(self, **fields: Any) -> TranslationError:
        with pytest.raises(TranslationError) as caught:
            self._translate(self.body(**fields))
        return caught.value

    def streamed(self, answer: bytes, **fields: Any) -> list[Json]:
        """Return the user's events for this answer of the engine."""
        return events(translated(self._translate(self.body(stream=True, **fields)), answer))
