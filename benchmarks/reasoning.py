"""Cost of the reasoning filter on a node: ``python -m benchmarks.reasoning``.

One process, one core, no sockets; an event per piece, as from engines that flush each token.  The
best of several rounds, since other load on the machine only adds time.
"""

from __future__ import annotations

import json
import platform
import time

from fabric_client.reasoning import ReasoningFilter

ROUNDS = 9
EVENTS = 5000
HEADERS = [("content-type", "text/event-stream")]


def event(delta: dict[str, object], **more: object) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
    chunk = {
        "id": "chatcmpl-0123456789abcdef0123456789abcdef",
        "object": "chat.completion.chunk",
        "created": 1763740000,
        "model": "qwen3:30b",
        "choices": [choice],
    }
    return b"data: " + json.dumps(chunk | more, separators=(",", ":")).encode() + b"\n\n"


USAGE = {"prompt_tokens": 9, "completion_tokens": 90, "total_tokens": 99}
# The event before, and the one that is measured.
ROWS: list[tuple[str, bytes, bytes]] = [
    ("plain chat, passes as it is", event({"content": "Well"}), event({"content": " then"})),
    (
        "content after reasoning, passes as it is",
        event({"content": "<think>Well</think>"}),
        event({"content": " then"}),
    ),
    ("reasoning_content, passes as it is", b"", event({"reasoning_content": " then"})),
    ("reasoning, gets its alias", b"", event({"reasoning": " then"})),
    ("inline reasoning", event({"content": "<think>"}), event({"content": " then"})),
    ("tool call", b"", event({"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]})),
    ("usage", event({"content": "Well"}), event({}, usage=USAGE)),
]


def best(before: bytes, measured: bytes) -> float:
    """Return seconds per event."""
    spent = []
    for _ in range(ROUNDS):
        reasoning = ReasoningFilter()
        reasoning.head(200, HEADERS)
        feed = reasoning.feed
        feed(before)
        began = time.perf_counter()
        for _ in range(EVENTS):
            feed(measured)
        spent.append(time.perf_counter() - began)
    return min(spent) / EVENTS


def main() -> int:
    print(f"{platform.machine()}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}")
    for name, before, measured in ROWS:
        print(f"  {name:<45} {best(before, measured) * 1e6:>6.2f} us")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
