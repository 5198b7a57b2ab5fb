"""Metadata of OpenAI's objects: a few pairs of short texts."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from fabric_server.dialects import errors
from fabric_server.metering.sse import UNREADABLE

MAX_PAIRS, MAX_KEY, MAX_VALUE = 16, 64, 512
"""Pairs, characters of a key, and characters of a value, as in OpenAI's API."""

Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=MAX_KEY)], Annotated[str, Meta(max_length=MAX_VALUE)]],
    Meta(max_length=MAX_PAIRS),
]
_TEXT = (
    f"'metadata' must be an object of at most {MAX_PAIRS} texts, of at most {MAX_VALUE} characters "
    f"each, and keys of at most {MAX_KEY}."
)


def decode_metadata(data: bytes) -> dict[str, str]:
    """Return the pairs of a JSON value; none for null.  Raises ``ApiError``: 400."""
    try:
        return msgspec.json.decode(data, type=Metadata | None) or {}
    except UNREADABLE:
        raise errors.bad_field("metadata", _TEXT) from None


def check_metadata(pairs: dict[str, str]) -> None:
    """Refuse pairs that no object can have.  Raises ``ApiError``: 400."""
    try:
        msgspec.convert(pairs, type=Metadata)
    except msgspec.ValidationError:
        raise errors.bad_field("metadata", _TEXT) from None
