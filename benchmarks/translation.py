"""Cost of translating a chunk of an answer: ``python -m benchmarks.translation``.

One process, no sockets; the best of several rounds, since other load on the machine only adds time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from fabric_client.sse import EventFramer, decode_events
from fabric_client.translation import RequestTranslator, messages, responses

ROUNDS = 7
CHUNKS = 10_000
REQUEST: dict[str, Any] = {"model": "tiny", "max_tokens": 9, "stream": True}
MESSAGES = REQUEST | {"messages": [{"role": "user", "content": "Say"}]}
RESPONSES = REQUEST | {"input": "Say"}


def chunk(delta: dict[str, Any]) -> bytes:
    """Return a chunk as llama-server sends it, about 240 bytes."""
    choice = {"finish_reason": None, "index": 0, "delta": delta}
    fields = {
        "choices": [choice],
        "created": 1795281791,
        "id": "chatcmpl-9UF800QKUEn0JiEqCHNHiDNSaq4JN3nb",
        "model": "tiny",
        "system_fingerprint": "b4567-abcdef",
        "object": "chat.completion.chunk",
    }
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


TEXT = chunk({"content": " word"})
THINKING = chunk({"reasoning_content": " word", "reasoning": " word"})
FIRST_PIECE = {"index": 0, "id": "a", "function": {"name": "weather", "arguments": "{"}}
CALL_BEGUN = chunk({"tool_calls": [FIRST_PIECE]})
CALL_PIECE = chunk({"tool_calls": [{"index": 0, "function": {"arguments": ' "word"'}}]})


def best(feed: Callable[[bytes], object], piece: bytes, chunks: int) -> float:
    """Return microseconds per chunk, where a piece holds so many chunks."""
    seconds = float("inf")
    feed(CALL_BEGUN)  # the beginning is not measured
    feed(piece)
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(CHUNKS // chunks):
            feed(piece)
        seconds = min(seconds, time.perf_counter() - started)
    return seconds / CHUNKS * 1e6


def response_feed(translate: RequestTranslator, body: dict[str, Any]) -> Callable[[bytes], bytes]:
    response_filter = translate(json.dumps(body).encode()).response_filter
    response_filter.head(200, [("content-type", "text/event-stream")])
    return response_filter.feed


def framing() -> Callable[[bytes], list[bytes]]:
    frame = EventFramer().feed
    return lambda data: decode_events(frame(data))


def main() -> None:
    print(f"{'µs per chunk':32}{'text':>8}{'thinking':>9}{'call':>7}{'16 in a piece':>15}")
    for name, make in (
        ("events only", framing),
        ("Messages", lambda: response_feed(messages.translate, MESSAGES)),
        ("Responses", lambda: response_feed(responses.translate, RESPONSES)),
    ):
        text, thinking, called = (best(make(), piece, 1) for piece in (TEXT, THINKING, CALL_PIECE))
        many = best(make(), TEXT * 16, 16)
        print(f"{name:32}{text:8.2f}{thinking:9.2f}{called:7.2f}{many:15.2f}")


if __name__ == "__main__":
    main()
