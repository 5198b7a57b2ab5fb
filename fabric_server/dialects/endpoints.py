"""What can be asked on the public port and is relayed to engines: one row for each path.

A new endpoint is a row here.  How a dialect words its errors is in ``shapes.py``.  Answers are
metered by ``usage.py`` (OpenAI), ``usage_events.py`` (other events) and ``usage_lines.py``
(Ollama).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from fabric_server.dialects.error_formats import Dialect
from fabric_server.metering.events import AudioMeter, MessagesMeter, ResponsesMeter
from fabric_server.metering.ollama import LinesMeter, ollama_usage
from fabric_server.metering.ollama_show import ShowMeter
from fabric_server.metering.openai import BodyMeter, Meter, NoMeter, StreamMeter

EVENTS = "text/event-stream"
LINES = "application/x-ndjson"

_EMBEDDINGS = frozenset({"embeddings"})
_EVERYBODYS = (
    (b"content-type", "content-type"),
    (b"accept", "accept"),
    (b"openai-beta", "openai-beta"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """``POST`` of one path."""

    path: str
    """As nodes know it: what ``EngineReport.paths`` names."""
    dialect: Dialect = Dialect.OPENAI
    form: bool = False
    """The body is a multipart form and not JSON."""
    buffers_body: bool = False
    """The body is read to its end before anything is done, however large."""
    streams: str | None = None
    """The type of a streamed answer; None: its answers come in one piece."""
    streams_by_default: bool = False
    """Where it can, it streams unless ``stream`` is false."""
    injects_usage: bool = False
    """A stream tells its usage only when ``stream_options`` says so."""
    rejects_state: bool = False
    """What would need an earlier answer is refused."""
    changes_length: bool = False
    """The meter changes the answer's length."""
    stream_meter: Callable[[bool], Meter] = StreamMeter
    """Made with whether the user wants the usage chunk."""
    body_meter: Callable[[], Meter] = BodyMeter
    prompt_keys: tuple[bytes, ...] = ()
    """Keys; the first of them that the body has begins the prompt.  None: there is no prompt."""
    image_markers: tuple[bytes, ...] = ()
    """Texts that only a body with a picture has."""
    capabilities: frozenset[str] = frozenset()
    """What the engine must be able to."""
    forwarded_headers: tuple[tuple[bytes, str], ...] = _EVERYBODYS
    """Of the user's headers those that the node is told, as both write them."""

    @property
    def allows_comments(self) -> bool:
        """Its streams can be kept alive by comments, which lines of JSON have not."""
        return self.streams == EVENTS


_CHAT = Endpoint(
    path="",
    streams=EVENTS,
    injects_usage=True,
    prompt_keys=(b'"messages"', b'"prompt"'),
    image_markers=(b'"image_url"', b'"input_image"'),
)
_MESSAGES = Endpoint(
    path="",
    dialect=Dialect.ANTHROPIC,
    stream_meter=MessagesMeter,
    prompt_keys=(b'"system"', b'"messages"'),
    image_markers=(b'"type":"image"', b'"type": "image"'),
    forwarded_headers=(
        *_EVERYBODYS,
        (b"anthropic-version", "anthropic-version"),
        (b"anthropic-beta", "anthropic-beta"),
    ),
)
_AUDIO = Endpoint(path="", form=True, buffers_body=True, streams=EVENTS, stream_meter=AudioMeter)
_RERANK = Endpoint(path="")
_TOKENS = Endpoint(path="", body_meter=NoMeter)
_OLLAMA = Endpoint(
    path="",
    dialect=Dialect.OLLAMA,
    streams_by_default=True,
    stream_meter=LinesMeter,
    body_meter=lambda: BodyMeter(ollama_usage),
    image_markers=(b'"images":["', b'"images": ["'),
)

_ROWS = (
    replace(_CHAT, path="/v1/chat/completions"),
    replace(_CHAT, path="/v1/completions"),
    Endpoint(path="/v1/embeddings", buffers_body=True, capabilities=_EMBEDDINGS),
    Endpoint(
        path="/v1/responses",
        dialect=Dialect.RESPONSES,
        buffers_body=True,
        rejects_state=True,
        streams=EVENTS,
        stream_meter=ResponsesMeter,
        prompt_keys=(b'"instructions"', b'"input"'),
        image_markers=_CHAT.image_markers,
    ),
    replace(_MESSAGES, path="/v1/messages", streams=EVENTS),
    replace(_MESSAGES, path="/v1/messages/count_tokens", body_meter=NoMeter),
    replace(_AUDIO, path="/v1/audio/transcriptions"),
    replace(_AUDIO, path="/v1/audio/translations"),
    replace(_RERANK, path="/v1/rerank"),
    replace(_RERANK, path="/rerank"),
    replace(_RERANK, path="/v2/rerank"),
    replace(_TOKENS, path="/tokenize"),
    replace(_TOKENS, path="/detokenize"),
    replace(_OLLAMA, path="/api/chat", streams=LINES, prompt_keys=(b'"messages"',)),
    replace(_OLLAMA, path="/api/generate", streams=LINES, prompt_keys=(b'"system"', b'"prompt"')),
    replace(_OLLAMA, path="/api/embed", capabilities=_EMBEDDINGS),
    replace(_OLLAMA, path="/api/embeddings", capabilities=_EMBEDDINGS),
    replace(_OLLAMA, path="/api/show", changes_length=True, body_meter=ShowMeter),
)

ENDPOINTS = {row.path: row for row in _ROWS} | {
    f"/ollama{row.path}": row for row in _ROWS if row.dialect is Dialect.OLLAMA
}
"""By the path that users ask."""
CHAT = ENDPOINTS["/v1/chat/completions"]
SHOW = ENDPOINTS["/api/show"]
DEFAULT_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})
"""What engines can be asked whose nodes don't tell."""
