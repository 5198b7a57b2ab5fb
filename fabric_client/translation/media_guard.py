"""Keeps URLs away from engines: the server has replaced those of media by data, or refused them.

An engine would open a URL in its owner's network.  The node relies on no server for that, and opens
no URL itself.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from fabric_client.translation import TranslationError
from fabric_client.translation.lenient_json import decode_json

_LINKS = frozenset({"image_url", "audio_url", "video_url", "file_url"})
_TEXTS = frozenset(
    {
        *("arguments", "metadata", "annotations", "citations", "action"),
        *("parameters", "input_schema", "schema", "json_schema", "format"),
    }
)
"""Fields whose contents the model reads, or that describe what it writes: no engine opens them."""
_GUARD = re.compile(rb'_url"|"source"\s*:\s*\{|\\u00[2-7]')
_MAX_SHOWN = 60
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


def refuse_links(body: bytes) -> None:
    """Raise ``TranslationError`` if a medium in an engine's request is anything but data."""
    lower = body.lower()  # a search without regard to case takes three times as long
    find = lower.rfind  # as does ``in`` for a word that is not there
    if find(b'_url"') < 0 and find(b'"source"') < 0 and find(b"\\u00") < 0:
        return
    if _GUARD.search(lower) is None:
        return
    try:
        document = decode_json(body)
    except _UNREADABLE:
        return  # the engine reports what is wrong with it
    waiting: list[tuple[Any, int]] = [(document, 0)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, list):
            waiting += [(one, depth) for one in value]
        elif isinstance(value, dict):
            for name, inner in value.items():
                plain = name.lower()
                if plain in _LINKS:
                    _check(plain, inner)
                elif plain == "source" and isinstance(inner, dict):
                    _check(plain, inner.get("url"))
                if plain not in _TEXTS and not (plain == "input" and depth):
                    waiting.append((inner, depth + 1))


def _check(name: str, value: Any) -> None:
    values = value if isinstance(value, list) else [value]
    for one in values:
        text = one.get("url") if isinstance(one, dict) else one
        if isinstance(text, str) and text and not text.startswith("data:"):
            shown = ascii(text[:_MAX_SHOWN])
            raise TranslationError(
                name, f"'{name}' must be a data: URL: engines open no other ({shown} is one)"
            )
