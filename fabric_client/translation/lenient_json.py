"""Lenient reading of JSON from outside: absent or wrong values count as empty."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from msgspec import Raw

Json = dict[str, Any]
T = TypeVar("T")

_decode_fields = msgspec.json.Decoder(dict[str, Raw]).decode

_SURROGATES = re.compile(
    rb"(\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)
"""Group 1 matches what must stay, such as a pair; the rest is a lone surrogate."""


def decode_json(body: bytes) -> Any:
    """Decode a user's body.

    Lone surrogates, left by programs that cut texts by length, become U+FFFD, as in engines.
    Raises ``ValueError`` or ``RecursionError``.
    """
    return _decode(body, msgspec.json.decode)


def decode_fields(body: bytes) -> dict[str, Raw]:
    """Decode an object of a user's, as ``decode_json`` does, with its values as they are written.

    The last of two fields with the same name counts.
    """
    return _decode(body, _decode_fields)


def _decode(body: bytes, decode: Callable[[bytes], T]) -> T:
    try:
        return decode(body)
    except msgspec.DecodeError:
        repaired = _SURROGATES.sub(lambda found: found[1] or rb"\ufffd", body)
        if repaired == body:
            raise
        return decode(repaired)


def decode_object(data: bytes) -> Json | None:
    """Decode an engine's object; None if it is anything else."""
    try:
        document = msgspec.json.decode(data)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def get_text(document: object, key: str) -> str:
    """Return the string at ``key``; empty if there is none."""
    value = document.get(key) if isinstance(document, dict) else None
    return value if isinstance(value, str) else ""


def get_object(document: object, key: str) -> Json:
    """Return the object at ``key``; empty if there is none."""
    value = document.get(key) if isinstance(document, dict) else None
    return value if isinstance(value, dict) else {}


def get_objects(document: object, key: str) -> list[Json]:
    """Return the objects in the list at ``key``."""
    value = document.get(key) if isinstance(document, dict) else None
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
