"""Engines' answers whose status is an error, read whatever their form."""

from __future__ import annotations

from fabric_client.sse import decode_events, looks_like_events
from fabric_client.translation.lenient_json import Json, decode_object
from runtime.engine_errors import EngineError, classify, read_document


def read_error(status: int, body: bytes) -> EngineError:
    """Read an engine's answer whose status is an error, whatever its form."""
    document = _read_document(body)
    if document is not None:
        return read_document(status, document)
    text = body.decode("utf-8", "replace").strip()
    if text.startswith("<") or not text:
        text = f"The engine answered with status {status}."
    return classify(status, text)


def _read_document(body: bytes) -> Json | None:
    """Return the document of an error, which may be the first event of a stream."""
    body = body.strip()
    if not looks_like_events(body):
        return decode_object(body)
    for data in decode_events(body + b"\n\n"):
        document = decode_object(data)
        if document is not None:
            return document
    return None
