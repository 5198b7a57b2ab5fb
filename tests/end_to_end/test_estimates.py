"""How far estimates of tokens are from the figures of real engines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import aiohttp
import pytest

from fabric_server.metering.estimate import prompt_tokens, streamed_tokens
from fabric_server.metering.events import MessagesMeter
from fabric_server.metering.ollama import LinesMeter
from fabric_server.metering.openai import Meter, StreamMeter
from tests.lab.llama import LlamaServer
from tests.lab.ollama import OllamaServer

TEXT = "The quick brown fox jumps over the lazy dog, and nobody knows why it did so. " * 10
CASES: list[tuple[str, str, Callable[[bool], Meter], dict[str, Any]]] = [
    (
        "llama-server",
        "/v1/chat/completions",
        StreamMeter,
        {"max_tokens": 200, "ignore_eos": True, "stream_options": {"include_usage": True}},
    ),
    ("llama-server", "/v1/messages", MessagesMeter, {"max_tokens": 200, "ignore_eos": True}),
    (
        "ollama",
        "/v1/chat/completions",
        StreamMeter,
        {"max_tokens": 200, "stream_options": {"include_usage": True}},
    ),
    ("ollama", "/api/chat", LinesMeter, {"options": {"num_predict": 200}}),
]
LONG = 20
"""Tokens of an answer that has something to estimate."""
_ENDS = (b'"finish_reason":"', b"event: content_block_stop", b'"done":true')


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaServer]:
    with LlamaServer() as server:
        yield server


@pytest.mark.parametrize(("engine", "path", "meter", "more"), CASES)
async def test_an_answer_s_estimate_is_close_to_what_the_engine_counts(
    engine: str,
    path: str,
    meter: Callable[[bool], Meter],
    more: dict[str, Any],
    llama: LlamaServer,
    ollama: OllamaServer,
) -> None:
    server = llama if engine == "llama-server" else ollama
    messages = [{"role": "user", "content": TEXT}]
    body = json.dumps({"model": server.model, "messages": messages, "stream": True, **more})
    for _ in range(20):  # a model of random weights may end its answer at once
        pieces = await _answer(f"{server.url}{path}", body)
        told = meter(True)
        for piece in pieces:
            told.feed(piece)
        prompt, completion = told.usage.prompt_tokens, told.usage.completion_tokens
        assert prompt
        assert completion
        if completion >= LONG:
            break
    else:
        pytest.fail(f"no answer had {LONG} tokens")
    cut, passed = meter(True), _before_the_end(pieces)
    for piece in passed:
        cut.feed(piece)
    tokens = streamed_tokens(sum(map(len, passed)) - cut.aside, cut.events, cut.sample)
    asked = prompt_tokens(body.encode())
    print(f"{engine} {path}: answer {tokens}/{completion}, prompt {asked}/{prompt}")
    assert 0.8 * completion <= tokens <= 1.3 * completion + 8
    assert asked


async def _answer(url: str, body: str) -> list[bytes]:
    async with (
        asyncio.timeout(60),
        aiohttp.ClientSession() as session,
        session.post(url, data=body) as answer,
    ):
        assert answer.status == 200, await answer.text()
        return [piece async for piece in answer.content.iter_any()]


def _before_the_end(pieces: list[bytes]) -> list[bytes]:
    """Return what had come before the engine told its figures."""
    text = b"".join(pieces)
    [end] = [at for mark in _ENDS if (at := text.find(mark)) >= 0]
    end = text.rfind(b"\n", 0, end) + 1
    passed: list[bytes] = []
    for piece in pieces:
        passed.append(piece[: max(0, end - sum(map(len, passed)))])
    return [piece for piece in passed if piece]
