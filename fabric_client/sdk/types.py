"""Types of the SDK's arguments and results."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

Message = dict[str, Any]
"""A message of OpenAI's chat API: ``{"role": "user", "content": "…"}``."""


class Answer(Struct, frozen=True):
    text: str
    reasoning: str
    """The model's reasoning before the answer; empty if it has none."""
    model: str
    finish_reason: str
    """``stop``, ``length``, ``tool_calls`` …"""
    prompt_tokens: int | None
    completion_tokens: int | None
    request_id: str
    tool_calls: list[dict[str, Any]] = []

    def __str__(self) -> str:
        return self.text


class Piece(Struct, frozen=True):
    """A part of a streamed answer."""

    text: str = ""
    reasoning: str = ""

    def __str__(self) -> str:
        return self.text


class Job(Struct, frozen=True):
    """A submitted job at the time of the call; fetch it again by its id."""

    id: str
    status: str
    """``queued``, ``processing``, ``completed``, ``failed`` or ``cancelled``."""
    position: int | None = None
    """Place in the queue, counted from 1, while it is queued."""
    response: str | None = None
    """The answer's text, once it is completed."""
    error: str | None = None
    """The error's message, once it has failed."""

    @property
    def over(self) -> bool:
        return self.status in ("completed", "failed", "cancelled")
