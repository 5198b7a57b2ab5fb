"""Estimates tokens where an engine has not told them, from what passed: four bytes of text each.

    prompt_tokens     the tokens of a prompt, by the request's body
    media_tokens      those of a large body with media, by its beginning
    streamed_tokens   the tokens of a stream, by its events, its bytes and one of its pieces
    whole_tokens      the tokens of an answer in one piece

Nothing of it runs while an answer passes: its meter has counted the events and holds one piece.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Raw

from fabric_server.metering.sse import UNREADABLE

BYTES_PER_TOKEN = 4
TOKENS_OF_MEDIA = 1000
"""Tokens of one image, recording or file."""
KEPT = 16 * 1024
"""Bytes up to which a request's body is kept to be read; of a larger one the size counts."""
_SEARCHED = 256 * 1024
"""Bytes of a large body that are searched for media."""
_MAX_DEPTH = 32


def tokens_of(size: float) -> int:
    """Return the tokens of so many bytes of text, rounded up."""
    return int(-(-size // BYTES_PER_TOKEN))


# ── prompts ───────────────────────────────────────────────────────────────────────────────────

_PROMPTS = frozenset(
    {"messages", "prompt", "input", "system", "instructions", "suffix", "template", "context"}
    | {"query", "documents", "texts", "text", "text_1", "text_2", "images", "content"}
)
_VERBATIM = frozenset({"tools", "functions"})
"""Fields that engines put into the prompt as JSON."""
_NO_TEXT = frozenset(
    {"type", "role", "id", "call_id", "tool_call_id", "tool_use_id", "status", "detail"}
    | {"cache_control", "media_type", "signature", "encrypted_content"}
)
_MEDIA = frozenset(
    {"image", "image_url", "input_image", "images", "input_audio", "audio_url", "audio"}
    | {"video_url", "video", "file", "input_file", "file_data"}
)
_MEDIA_MARKS = (b";base64,", b'"base64"', b'"input_audio"', b'"images"', b'"file_data"')
_ENCODED = re.compile(rb'"(?:data:[^",]{1,100},)?[A-Za-z0-9+/=_-]{1024,}+"')
_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_any = msgspec.json.Decoder().decode


def media_tokens(body: bytes) -> int:
    """Estimate the tokens of a large body with media, by its beginning; 0 if it has none."""
    if not any(body.find(mark, 0, _SEARCHED) >= 0 for mark in _MEDIA_MARKS):
        return 0
    text, media = _ENCODED.subn(b'""', body[:_SEARCHED])
    if not media and len(body) > _SEARCHED:
        text = b""  # one that does not end here
    return tokens_of(len(text)) + max(1, media) * TOKENS_OF_MEDIA


def prompt_tokens(body: bytes) -> int:
    """Estimate the tokens of the prompt in a JSON body."""
    try:
        fields = _decode_fields(body)
        given = [(name, raw) for name, raw in fields.items() if name in _PROMPTS | _VERBATIM]
        size = sum(
            len(bytes(raw)) if name in _VERBATIM else _size(name, _decode_any(raw), _MAX_DEPTH)
            for name, raw in given
        )
    except UNREADABLE:
        size = len(body)
    return tokens_of(size)


def _size(name: str, value: Any, levels: int) -> int:
    """Return the bytes of text in a value, and those that media stand for."""
    if name in _MEDIA and value and isinstance(value, str | dict):
        return TOKENS_OF_MEDIA * BYTES_PER_TOKEN
    if isinstance(value, str):
        return 0 if name in _NO_TEXT else len(value.encode())
    if isinstance(value, int | float):
        return 0 if isinstance(value, bool) else BYTES_PER_TOKEN  # token ids
    if not value or not levels:
        return 0
    if isinstance(value, list):
        return sum(_size(name, one, levels - 1) for one in value)
    if value.get("type") in _MEDIA or isinstance(value.get("data"), str):
        return TOKENS_OF_MEDIA * BYTES_PER_TOKEN
    return sum(_size(key, one, levels - 1) for key, one in value.items())


# ── answers ───────────────────────────────────────────────────────────────────────────────────

_TEXT = re.compile(
    rb'"(?:content|text|response|delta|refusal|arguments|partial_json|transcript'
    rb'|reasoning|reasoning_content|reasoning_text|thinking)"\s*:\s*"([^"\\]*+(?:\\.[^"\\]*+)*)'
)
_PROBABILITIES = re.compile(rb'"(?:logprobs"\s*:\s*[{\[]|completion_probabilities")')


def streamed_tokens(received: int, events: int, sample: bytes) -> int:
    """Estimate the tokens of a stream: one for each event, or more where its text is longer.

    ``received`` are its bytes, and ``events`` are as a meter counts them.  What is not text in an
    event is known from ``sample``, which is some of them.
    """
    count = text = size = 0
    for event in _events(sample):
        found = _text_in(event)
        if found:
            count, text, size = count + 1, text + found, size + len(event)
    if not count:
        return events
    if _PROBABILITIES.search(sample):  # these differ in length from one token to the next
        return max(events, tokens_of(events * text / count))
    return max(events, tokens_of(max(text, received - events * (size - text) / count)))


def whole_tokens(received: int, beginning: bytes) -> int:
    """Estimate the tokens of an answer in one piece, by its size and its beginning."""
    if not beginning.lstrip().startswith((b"{", b"[")):
        return tokens_of(received)
    texts = _TEXT.findall(beginning)
    if not texts:
        return 1
    text = sum(map(len, texts))
    return tokens_of(received - (len(beginning) - text))


def has_text(sample: bytes) -> bool:
    """Return whether some of the events have text."""
    return any(map(_text_in, _events(sample)))


def _events(sample: bytes) -> list[bytes]:
    """Return events with their blank lines, or lines of JSON."""
    if sample.startswith(b"{"):
        return sample.splitlines(keepends=True)
    return [one + b"\n\n" for one in re.split(rb"\r?\n\r?\n|\r\r", sample) if one]


def _text_in(event: bytes) -> int:
    if b'"response.' in event and b'.delta"' not in event:
        return 0  # it repeats what earlier events had
    return sum(map(len, _TEXT.findall(event)))
