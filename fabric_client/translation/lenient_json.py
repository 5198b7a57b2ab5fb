"""Reading what may be anything: a user's body, an engine's answer."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from fabric_client.translation import TranslationError

Json = dict[str, Any]


_HALVES = re.compile(
    rb"(\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|\\u[dD][89a-fA-F][0-9a-fA-F]{2}"
)
"""What is to stay, or half an emoji."""


def decoded(body: bytes) -> Any:
    """Of a user's body the JSON.  Half emojis, which programs leave that cut texts by length, are
    what engines make of them: U+FFFD.  Raises what msgspec raises."""
    try:
        return msgspec.json.decode(body)
    except msgspec.DecodeError:
        whole = _HALVES.sub(lambda found: found[1] or rb"\ufffd", body)
        if whole == body:
            raise
        return msgspec.json.decode(whole)


def asked(body: bytes) -> Json:
    """A user's body.  Raises Untranslatable unless it is a JSON object that names a model."""
    try:
        document = decoded(body)
    except (ValueError, RecursionError) as error:
        raise TranslationError("", f"The body is no JSON: {error}.") from None
    if not isinstance(document, dict):
        raise TranslationError("", "The body is no JSON object.")
    if not isinstance(document.get("model"), str) or not document["model"]:
        raise TranslationError("model", "model is required")
    return document


def said(data: bytes) -> Json | None:
    """An engine's object; None when it is none."""
    try:
        document = msgspec.json.decode(data)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def text(document: object, key: str) -> str:
    """Empty when it is missing, or no text."""
    value = document.get(key) if isinstance(document, dict) else None
    return value if isinstance(value, str) else ""


def inner(document: object, key: str) -> Json:
    value = document.get(key) if isinstance(document, dict) else None
    return value if isinstance(value, dict) else {}


def rows(document: object, key: str) -> list[Json]:
    """Those of a list that are objects."""
    value = document.get(key) if isinstance(document, dict) else None
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def complaint(document: Json) -> str | None:
    """An engine's own words, in any of the shapes that are in use; None when it has none.

    ``{"error": {"message": …}}``, ``{"error": "…"}``, and of older vLLM
    ``{"object": "error", "message": …}``; FastAPI has ``{"detail": …}``.
    """
    error = document.get("error")
    if isinstance(error, dict):
        return text(error, "message") or msgspec.json.encode(error).decode()
    if error:
        return str(error)
    if document.get("object") == "error":
        return text(document, "message") or "the engine failed"
    detail = document.get("detail")
    if detail and "choices" not in document:
        return detail if isinstance(detail, str) else msgspec.json.encode(detail).decode()
    return None
