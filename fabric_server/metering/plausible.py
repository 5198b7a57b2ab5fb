"""Bounds of the tokens that an engine may report: its figures are billed, its node is a stranger.

A prompt has no more tokens than bytes, except for media.  An answer has no more than the client
allowed, the model's context holds, or any engine can generate in the time that it took; but what
passed as an event is never doubted.  Tokens of hidden reasoning are therefore believed within these
bounds.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass

import msgspec
from msgspec import Raw

from fabric_server.metering.documents import (
    NULL,
    Limits,
    Options,
    decode_limits,
    decode_options,
    decode_raw_limits,
)
from fabric_server.metering.sse import UNREADABLE
from fabric_server.metering.usage import BoundedUsage, Usage

MEDIA_TOKENS = 16_384
"""Tokens of one image or the like."""
MAX_RATE = 20_000.0
"""Tokens a second that no engine exceeds for one request."""


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer, as the server saw it."""

    prompt_bytes: int
    media: int
    """Images and the like in the prompt."""
    events: int
    """Events of its stream; 0 for an answer in one piece."""
    seconds: float
    limit: int | None
    """The most tokens that the client allows; None: any."""
    context: int | None
    """The model's context length; None is not known."""
    generates: bool = True
    """The endpoint generates text; embeddings have no tokens of an answer."""

    @property
    def max_prompt(self) -> int:
        return self.prompt_bytes + self.media * MEDIA_TOKENS

    @property
    def max_completion(self) -> int:
        if not self.generates:
            return 0
        in_time = max(self.seconds, 1.0) * MAX_RATE  # a short answer's time is not exact
        most = min(self.limit or math.inf, self.context or math.inf, in_time)
        return max(self.events, int(most))


def believable(usage: Usage, answered: Answered) -> Usage:
    """Return the usage; a ``BoundedUsage`` where it exceeded its bounds."""
    prompt, completion = usage.prompt_tokens, usage.completion_tokens
    if prompt is not None and prompt > answered.max_prompt:
        prompt = answered.max_prompt
    if completion is not None and completion > answered.events:  # otherwise there is no doubt
        completion = min(completion, answered.max_completion)
    if prompt == usage.prompt_tokens and completion == usage.completion_tokens:
        return usage
    return BoundedUsage(prompt, completion)


# ── what the client allows ────────────────────────────────────────────────────────────────────


_decode_number = msgspec.json.Decoder(int).decode


def output_limit(body: bytes) -> int | None:
    """Return the most tokens that a request's JSON body allows, in all its choices; None: any."""
    if body.find(b"max_") < 0 and body.find(b"_predict") < 0:
        return None
    try:
        given = decode_limits(body)
    except UNREADABLE:
        found = _read_leniently(body)
        if found is None:
            return None
        given = found
    most = max(
        given.max_tokens or 0,
        given.max_completion_tokens or 0,
        given.max_output_tokens or 0,
        given.n_predict or 0,
        0 if given.options is None else given.options.num_predict or 0,
    )
    return most * max(1, given.n or 0, given.best_of or 0) if most > 0 else None


def _read_leniently(body: bytes) -> Limits | None:
    try:
        raw = decode_raw_limits(body)
    except UNREADABLE:
        return None
    options: dict[str, Raw] = {}
    with suppress(*UNREADABLE):
        options = decode_options(raw.options)
    return Limits(
        _number(raw.max_tokens),
        _number(raw.max_completion_tokens),
        _number(raw.max_output_tokens),
        _number(raw.n_predict),
        _number(raw.n),
        _number(raw.best_of),
        Options(_number(options.get("num_predict", NULL))),
    )


def _number(raw: Raw) -> int:
    """Return a whole number; 0 for anything else."""
    try:
        return _decode_number(raw)
    except UNREADABLE:
        return 0
