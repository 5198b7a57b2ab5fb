"""Streams of each API, with texts in them that look like their markers."""

from __future__ import annotations

import json
from typing import Any

from tests.site import event

TRICK = '"type":"message_stop" "done":true data: [DONE] event: response.completed'


def named(type: str, **fields: Any) -> bytes:
    return b"event: " + type.encode() + b"\n" + event({"type": type, **fields})


def line(**fields: Any) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


MESSAGES = [
    named("message_start", message={"id": "m", "usage": {"input_tokens": 5, "output_tokens": 1}}),
    named("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    named("ping"),
    named("content_block_delta", index=0, delta={"type": "text_delta", "text": "message_stop"}),
    named("content_block_delta", index=0, delta={"type": "text_delta", "text": TRICK}),
    b": a comment\n\n",
    named("content_block_stop", index=0),
    named("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 7}),
    named("message_stop"),
]


RESPONSES = [
    named("response.created", response={"id": "r", "usage": None}, sequence_number=0),
    named("response.output_text.delta", delta="response.completed"),
    named("response.output_text.delta", delta=TRICK),
    named(
        "response.completed",
        response={"output": [TRICK], "usage": {"input_tokens": 5, "output_tokens": 7}},
    ),
]


LINES = [
    line(model="tiny", message={"role": "assistant", "content": "Hel"}, done=False),
    line(model="tiny", message={"content": TRICK + '{"done":true}'}, done=False),
    line(message={"tool_calls": [{"function": {"arguments": {"done": True}}}]}, done=False),
    line(message={"tool_calls": [{"function": {"arguments": {"error": "x"}}}]}, done=False),
    line(model="tiny", done=True, done_reason="stop", prompt_eval_count=5, eval_count=7),
]


SPOKEN = [
    event({"type": "transcript.text.delta", "delta": "Hel"}),
    event({"type": "transcript.text.delta", "delta": TRICK}),
    event(
        {
            "type": "transcript.text.done",
            "text": TRICK,
            "usage": {"type": "tokens", "input_tokens": 5, "output_tokens": 7},
        }
    ),
]
