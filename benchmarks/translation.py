"""What a chunk of an answer costs when it is translated: ``python -m benchmarks.translation``.

One process, no sockets; the best of several rounds, since everything else that runs on the machine
only ever adds.
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
QUESTION: dict[str, Any] = {"model": "tiny", "max_tokens": 9, "stream": True}
MESSAGES = QUESTION | {"messages": [{"role": "user", "content": "Say"}]}
RESPONSES = QUESTION | {"input": "Say"}


def chunk(delta: dict[str, Any]) -> bytes:
    """As llama-server sends it, of 240 bytes or so."""
    choice = {"finish_reason": None, "index": 0, "delta": delta}
    told = {
        "choices": [choice],
        "created": 1795281791,
        "id": "chatcmpl-9UF800QKUEn0JiEqCHNHiDNSaq4JN3nb",
        "model": "tiny",
        "system_fingerprint": "b4567-abcdef",
        "object": "chat.completion.chunk",
    }
    return b"data: " + json.dumps(told).encode() + b"\n\n"


TEXT = chunk({"content": " word"})
THOUGHT = chunk({"reasoning_content": " word", "reasoning": " word"})
BEGUN = {"index": 0, "id": "a", "function": {"name": "weather", "arguments": "{"}}
CALL_BEGUN = chunk({"tool_calls": [BEGUN]})
CALLED = chunk({"tool_calls": [{"index": 0, "function": {"arguments": ' "word"'}}]})


def best(feed: Callable[[bytes], object], piece: bytes, chunks: int) -> float:
    """Microseconds a chunk, where a piece holds so many."""
    seconds = float("inf")
    feed(CALL_BEGUN)  # what comes but once
    feed(piece)
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(CHUNKS // chunks):
            feed(piece)
        seconds = min(seconds, time.perf_counter() - started)
    return seconds / CHUNKS * 1e6


def answering(translate: RequestTranslator, question: dict[str, Any]) -> Callable[[bytes], bytes]:
    answer = translate(json.dumps(question).encode()).response_filter
    answer.head(200, [("content-type", "text/event-stream")])
    return answer.feed


def framing() -> Callable[[bytes], list[bytes]]:
    frame = EventFramer().feed
    return lambda data: decode_events(frame(data))


def main() -> None:
    print(f"{'µs a chunk':32}{'text':>8}{'thought':>9}{'call':>7}{'16 in a piece':>15}")
    for name, make in (
        ("events only", framing),
        ("Messages", lambda: answering(messages.translate, MESSAGES)),
        ("Responses", lambda: answering(responses.translate, RESPONSES)),
    ):
        text, thought, called = (best(make(), piece, 1) for piece in (TEXT, THOUGHT, CALLED))
        many = best(make(), TEXT * 16, 16)
        print(f"{name:32}{text:8.2f}{thought:9.2f}{called:7.2f}{many:15.2f}")


if __name__ == "__main__":
    main()
