"""Shared by the tests of translation from the API of Ollama."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from fabric_client.translation import (
    ResponseFilter,
    TranslatedRequest,
    TranslationError,
)
from fabric_client.translation.ollama import Ollama

Json = dict[str, Any]
RECORDED = Path(__file__).parent / "recorded"
LLAMA = (RECORDED / "llama_server_chat.sse").read_bytes()
LLAMA_TEXT = (RECORDED / "llama_server_completions.sse").read_bytes()
TOOLS = (RECORDED / "vllm_tools.sse").read_bytes()
STREAM = [("content-type", "text/event-stream; charset=utf-8")]
WHOLE = [("content-type", "application/json")]
NOW = 1_795_281_513_000_000_007
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(20)).decode()
HELLO = [{"role": "user", "content": "hello"}]


class Clock:
    """A millisecond passes at each look."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        self.now += 1_000_000
        return self.now


def ollama(kind: str = "vllm", clock: Callable[[], int] = lambda: NOW) -> Ollama:
    return Ollama(kind, clock)


def engine_request(path: str, body: Json, kind: str = "vllm") -> Json:
    """What the engine is asked."""
    asked = getattr(ollama(kind), path)(json.dumps({"model": "tiny", **body}).encode())
    assert isinstance(asked, TranslatedRequest)
    found: Json = json.loads(asked.body)
    return {"path": asked.path, **found}


def rejection(path: str, body: Json, kind: str = "vllm") -> TranslationError:
    with pytest.raises(TranslationError) as caught:
        engine_request(path, body, kind)
    return caught.value


def translator(
    path: str = "chat", clock: Callable[[], int] | None = None, **body: Any
) -> ResponseFilter:
    words: Json = {"messages": HELLO, "prompt": "hello", "input": "hello"}
    asked = getattr(ollama(clock=clock or (lambda: NOW)), path)(
        json.dumps({"model": "tiny", **words, **body}).encode()
    )
    assert isinstance(asked, TranslatedRequest)
    assert asked.response_filter is not None
    return asked.response_filter


def filtered(translator: ResponseFilter, pieces: Iterable[bytes], headers: Any = STREAM) -> bytes:
    translator.head(200, headers)
    return b"".join(translator.feed(piece) for piece in pieces) + translator.end()


def lines(data: bytes) -> list[Json]:
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


def event(**choice: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, **choice}]}).encode() + b"\n\n"
