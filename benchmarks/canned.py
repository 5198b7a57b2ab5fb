"""The answers of the mock engine, known beforehand by the load generator that checks them.

All token events have one size and carry their number, so that a stream is right exactly when its
bytes are those of `body`, and how many events have come is a division.
"""

from __future__ import annotations

import json
from functools import cache

MODEL = "mock"
"""Answers at once: JSON, or events as fast as they are taken."""
BURST_MODEL = "mock-burst"
"""The same, `BURST` events in one write."""
BURST = 16
PACED_MODEL = "mock-paced"
"""The pace of a fast engine that streams to each of many users."""
CROWD_MODEL = "mock-crowd"
"""The pace of an engine that people can just read along with."""
PACES = {PACED_MODEL: 0.025, CROWD_MODEL: 0.1}
"""Seconds from event to event of a stream.  A thousand of the first and five thousand of the second
leave two cores some time, so that what comes late is late because of what is measured."""
FAST_EVENTS = 256
"""Events in an unpaced stream."""

SMALL = (
    b'{"id":"chatcmpl-mock","object":"chat.completion","created":1700000000,"model":"mock",'
    b'"choices":[{"index":0,"message":{"role":"assistant","content":"Hello from the mock engine."},'
    b'"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":9,"completion_tokens":6,"total_tokens":15}}'
)
SHARED = SMALL.replace(b'"usage":{', b'"usage":{"analysis_tokens":0,"final_tokens":6,')
"""The same from a node, which tells how much of an answer was reasoning."""
MODELS = (
    b'{"object":"list","data":['
    b'{"id":"mock","object":"model","created":1700000000,"owned_by":"mock"},'
    b'{"id":"mock-burst","object":"model","created":1700000000,"owned_by":"mock"},'
    b'{"id":"mock-paced","object":"model","created":1700000000,"owned_by":"mock"},'
    b'{"id":"mock-crowd","object":"model","created":1700000000,"owned_by":"mock"}]}'
)

_START = b'data: {"id":"chatcmpl-mock","object":"chat.completion.chunk","created":1700000000,'
_TOKEN = _START + (
    b'"model":"mock","choices":[{"index":0,"delta":{"content":" %07d"},"finish_reason":null}]}\n\n'
)
FINISH = _START + b'"model":"mock","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = _START + (
    b'"model":"mock","choices":[],'
    b'"usage":{"prompt_tokens":9,"completion_tokens":256,"total_tokens":265}}\n\n'
)
DONE = b"data: [DONE]\n\n"
EVENT_BYTES = len(_TOKEN % 0)


@cache
def tokens(count: int) -> bytes:
    return b"".join(_TOKEN % number for number in range(count))


@cache
def body(count: int) -> bytes:
    """What a user reads, who did not ask for usage."""
    return tokens(count) + FINISH + DONE


def meaning(answer: bytes) -> tuple[str, ...] | None:
    """Return the meaning of an answer: each piece of its text, and how it ended.

    None for what is no whole answer.
    """
    if not answer.startswith(b"data: "):
        return _spoken(answer, "message")
    *events, last, rest = answer.split(b"\n\n")
    if rest or last != DONE.strip():
        return None
    pieces = [_spoken(event.removeprefix(b"data: "), "delta") for event in events]
    return tuple(word for piece in pieces for word in piece or ("not JSON",) if word)


def _spoken(event: bytes, place: str) -> tuple[str, ...] | None:
    """The text and the reason of the end; each is empty where there is none."""
    try:
        choice = json.loads(event)["choices"][0]
        return choice[place].get("content") or "", choice.get("finish_reason") or ""
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def chunk(data: bytes) -> bytes:
    """One chunk of HTTP/1.1's chunked coding (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data)


CHUNK_BYTES = len(chunk(_TOKEN % 0))


@cache
def token_chunks(count: int) -> bytes:
    """Each event a chunk of its own, as engines send them."""
    return b"".join(chunk(_TOKEN % number) for number in range(count))


def last_chunks(usage: bool) -> bytes:
    return chunk(FINISH) + (chunk(USAGE) if usage else b"") + chunk(DONE) + b"0\r\n\r\n"
