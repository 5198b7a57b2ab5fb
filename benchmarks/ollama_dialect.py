"""Cost of Ollama's API on a node: ``python -m benchmarks.ollama_dialect``.

One process, one core, no sockets; the best of several rounds, since other load on the machine only
adds time.
"""

from __future__ import annotations

import base64
import json
import platform
import sys
import time
from collections.abc import Callable

from fabric_client.translation import ResponseFilter, TranslatedRequest, native_filters
from fabric_client.translation.ollama import Ollama

ROUNDS = 7
CHUNKS = 2000
MAX_MICROSECONDS = 20.0
"""Limit per chunk: at 200 tokens a second in each of 16 slots, 6 % of a core."""

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}
SSE = [("content-type", "text/event-stream")]


def chunk(delta: dict[str, object], **more: object) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None, **more}
    head = {"id": "chatcmpl-0123456789", "object": "chat.completion.chunk", "created": 1762000000}
    return b"data: " + json.dumps({**head, "model": "tiny", "choices": [choice]}).encode() + b"\n\n"


def response_filter(path: str, **more: object) -> ResponseFilter:
    body = json.dumps({**CHAT, "prompt": "Why?", **more}).encode()
    request = getattr(Ollama("vllm", time.time_ns), path)(body)
    assert isinstance(request, TranslatedRequest)
    assert request.response_filter is not None
    return request.response_filter


def streamed(path: str, delta: dict[str, object], **more: object) -> Callable[[], float]:
    piece = chunk(delta, **more)

    def once() -> float:
        found = response_filter(path)
        found.head(200, SSE)
        feed = found.feed
        feed(chunk(CALL))
        began = time.perf_counter()
        for _ in range(CHUNKS):
            feed(piece)
        taken = (time.perf_counter() - began) / CHUNKS
        found.feed(chunk({}, finish_reason="stop"))
        assert b'"done":true' in found.end(), "the answer failed before its end"
        return taken

    return once


def whole(translate: Callable[[bytes], object], body: bytes) -> Callable[[], float]:
    def once() -> float:
        began = time.perf_counter()
        translate(body)
        return time.perf_counter() - began

    return once


TOKEN = {"token": " sky", "logprob": -0.5, "bytes": [32, 115]}
LOGPROBS = {"content": [{**TOKEN, "top_logprobs": [TOKEN] * 5}]}
CALL = {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}]}
PIECE = {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": '}}]}
IMAGE = base64.b64encode(b"\x89PNG" + bytes(24 * 2**20)).decode()
LARGE = {**CHAT, "messages": [{"role": "user", "content": "what?", "images": [IMAGE]}]}
PLAIN = json.dumps({**CHAT, "padding": "x" * (32 * 2**20)}).encode()

PER_CHUNK = {
    "a token of a chat": streamed("chat", {"content": " sky"}),
    "a token of a thought": streamed("chat", {"reasoning": " sky"}),
    "a token of a prompt": streamed("generate", {"content": " sky"}),
    "a token with 5 alternatives": streamed("chat", {"content": " sky"}, logprobs=LOGPROBS),
    "a piece of a tool call": streamed("chat", PIECE),
}
PER_QUESTION = {
    "a question of 100 bytes": whole(Ollama("vllm", time.time_ns).chat, json.dumps(CHAT).encode()),
    "a question of 32 MiB, an image": whole(
        Ollama("vllm", time.time_ns).chat, json.dumps(LARGE).encode()
    ),
    "a native chat of 32 MiB, scanned": whole(native_filters.chat, PLAIN),
}


def main() -> int:
    print(f"Python {platform.python_version()}, {platform.machine()}; best of {ROUNDS}")
    worst = 0.0
    for name, once in PER_CHUNK.items():
        taken = min(once() for _ in range(ROUNDS)) * 1e6
        worst = max(worst, taken)
        print(f"{name:42} {taken:8.2f} µs")
    for name, once in PER_QUESTION.items():
        print(f"{name:42} {min(once() for _ in range(ROUNDS)) * 1e3:8.2f} ms")
    if worst > MAX_MICROSECONDS:
        print(f"A chunk costs more than {MAX_MICROSECONDS:g} µs.")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
