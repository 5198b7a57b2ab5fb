"""Parts of a stream that mean nothing, for each dialect: they only show that it is alive.

Server-sent events have comments, lines that begin with a colon (WHATWG HTML, 9.2.6).  Anthropic's
API sends events called ``ping`` once an answer has begun.  Lines of JSON have neither, and Ollama's
Python client, like LangChain's older one, takes an empty line for broken JSON: there a line with
empty text is sent, as Ollama itself does while a model thinks.
"""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from fabric_server.dialects.endpoints import LINES, Endpoint
from fabric_server.dialects.error_formats import Dialect

_PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_EMPTY: dict[str, dict[str, object]] = {
    "/api/chat": {"message": {"role": "assistant", "content": ""}},
    "/api/generate": {"response": ""},
}


def keepalive(endpoint: Endpoint, model: str, text: str, *, begun: bool = False) -> bytes:
    """Return what can stand between two events of a stream of this endpoint.

    ``text`` is for people who look at a comment; ``begun``: the answer has begun.
    """
    if endpoint.streams == LINES:
        return _empty_line(endpoint.path, model)
    if begun and endpoint.dialect is Dialect.ANTHROPIC:
        return _PING
    return b": " + text.encode() + b"\n\n"


def _empty_line(path: str, model: str) -> bytes:
    created_at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    line = {"model": model, "created_at": created_at, **_EMPTY[path], "done": False}
    return msgspec.json.encode(line) + b"\n"
