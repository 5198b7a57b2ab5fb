"""The endpoints of the public port that engines answer: one row for each path.

A new endpoint is a row here.  Error formats are in ``error_formats``.  Answers are metered by
``metering.openai``, ``metering.events`` (other streams of events) and ``metering.ollama``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from fabric_server.dialects.error_formats import Dialect
from fabric_server.metering.answer_ids import ChatIdMeter, IdMeter, ResponseIdMeter
from fabric_server.metering.events import AudioMeter, MessagesMeter, ResponsesMeter
from fabric_server.metering.naming import NamingMeter
from fabric_server.metering.ollama import LinesMeter, ollama_usage
from fabric_server.metering.ollama_show import ShowMeter
from fabric_server.metering.openai import BodyMeter, CompletionsMeter, Meter, NoMeter, StreamMeter

EVENTS = "text/event-stream"
LINES = "application/x-ndjson"

_EMBEDDINGS = frozenset({"embeddings"})
_COMMON_HEADERS = (
    (b"content-type", "content-type"),
    (b"accept", "accept"),
    (b"openai-beta", "openai-beta"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One path that is called with POST."""

    path: str
    """The path as nodes know it, in ``EngineReport.paths``."""
    dialect: Dialect = Dialect.OPENAI
    form: bool = False
    """The body is a multipart form instead of JSON."""
    buffers_body: bool = False
    """The body is read to its end first, however large it is."""
    streams: str | None = None
    """Content type of a streamed answer; None: answers always come in one piece."""
    streams_by_default: bool = False
    """Answers stream unless ``stream`` is false."""
    injects_usage: bool = False
    """Streams report usage only on request, so ``stream_options`` is inserted."""
    rejects_state: bool = False
    """Requests that refer to earlier answers are refused."""
    stores: bool = False
    """Answers are stored whose requests ask for it; set on copies of a row."""
    generates: bool = True
    """Engines generate text; otherwise their answers have no tokens."""
    changes_length: bool = False
    """The meter changes the length of the answer."""
    stream_meter: Callable[[bool], Meter] = StreamMeter
    """Makes the meter of a stream; its argument is whether the client wants the usage chunk."""
    body_meter: Callable[[], Meter] = BodyMeter
    metered: bool = True
    """Engines read a prompt, so that tokens are charged also where an engine tells none."""
    prompt_keys: tuple[bytes, ...] = ()
    """Keys of the body, of which the first found begins the prompt; empty: there is no prompt."""
    image_markers: tuple[bytes, ...] = ()
    """Texts that only a body with an image has."""
    capabilities: frozenset[str] = frozenset()
    """Capabilities that the engine must have."""
    forwarded_headers: tuple[tuple[bytes, str], ...] = _COMMON_HEADERS
    """Headers of the request that are forwarded to the node: the name in both spellings."""


_CHAT = Endpoint(
    path="",
    streams=EVENTS,
    injects_usage=True,
    prompt_keys=(b'"messages"', b'"prompt"'),
    image_markers=(b'"image_url"', b'"input_image"'),
)
_RESPONSES = Endpoint(
    path="",
    dialect=Dialect.RESPONSES,
    buffers_body=True,
    rejects_state=True,
    stream_meter=ResponsesMeter,
    prompt_keys=(b'"instructions"', b'"input"'),
    image_markers=_CHAT.image_markers,
)
_MESSAGES = Endpoint(
    path="",
    dialect=Dialect.ANTHROPIC,
    stream_meter=MessagesMeter,
    prompt_keys=(b'"system"', b'"messages"'),
    image_markers=(b'"type":"image"', b'"type": "image"'),
    forwarded_headers=(
        *_COMMON_HEADERS,
        (b"anthropic-version", "anthropic-version"),
        (b"anthropic-beta", "anthropic-beta"),
    ),
)
_AUDIO = Endpoint(path="", form=True, buffers_body=True, streams=EVENTS, stream_meter=AudioMeter)
_RERANK = Endpoint(path="", generates=False)
_TOKENS = Endpoint(path="", body_meter=NoMeter, generates=False, metered=False)
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
    replace(_CHAT, path="/v1/completions", stream_meter=CompletionsMeter),
    Endpoint(path="/v1/embeddings", buffers_body=True, capabilities=_EMBEDDINGS, generates=False),
    replace(_RESPONSES, path="/v1/responses", streams=EVENTS),
    replace(_RESPONSES, path="/v1/responses/input_tokens", body_meter=NoMeter, metered=False),
    replace(_MESSAGES, path="/v1/messages", streams=EVENTS),
    replace(_MESSAGES, path="/v1/messages/count_tokens", body_meter=NoMeter, metered=False),
    replace(_AUDIO, path="/v1/audio/transcriptions"),
    replace(_AUDIO, path="/v1/audio/translations"),
    replace(_RERANK, path="/v1/rerank"),
    replace(_RERANK, path="/rerank"),
    replace(_RERANK, path="/v2/rerank"),
    *(Endpoint(path=path) for path in ("/v1/score", "/score", "/classify", "/pooling")),
    Endpoint(path="/v1/moderations"),
    Endpoint(path="/v1/images/generations"),
    Endpoint(path="/v1/audio/speech", body_meter=NoMeter, metered=False),
    replace(_TOKENS, path="/tokenize"),
    replace(_TOKENS, path="/detokenize"),
    replace(_OLLAMA, path="/api/chat", streams=LINES, prompt_keys=(b'"messages"',)),
    replace(_OLLAMA, path="/api/generate", streams=LINES, prompt_keys=(b'"system"', b'"prompt"')),
    replace(_OLLAMA, path="/api/embed", capabilities=_EMBEDDINGS, generates=False),
    replace(_OLLAMA, path="/api/embeddings", capabilities=_EMBEDDINGS, generates=False),
    replace(_OLLAMA, path="/api/show", changes_length=True, body_meter=ShowMeter, metered=False),
)

ENDPOINTS = {row.path: row for row in _ROWS} | {
    f"/ollama{row.path}": row for row in _ROWS if row.dialect is Dialect.OLLAMA
}
"""Endpoints by the path of the public port."""
CHAT = ENDPOINTS["/v1/chat/completions"]
SHOW = ENDPOINTS["/api/show"]
DEFAULT_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})
"""Paths that engines are assumed to support when their nodes report none."""


def named(endpoint: Endpoint, real: str, asked: str) -> Endpoint:
    """Return the endpoint with answers in which the model ``real`` has the name ``asked``."""
    return replace(
        endpoint,
        stream_meter=lambda wanted: NamingMeter(endpoint.stream_meter(wanted), real, asked),
        body_meter=lambda: NamingMeter(endpoint.body_meter(), real, asked),
        changes_length=True,
    )


def with_response_id(endpoint: Endpoint, id: str) -> Endpoint:
    """Return the endpoint with answers in which the response has this id."""
    return _with_id(endpoint, ResponseIdMeter, id)


def with_chat_id(endpoint: Endpoint, id: str) -> Endpoint:
    """Return the endpoint with answers in which the chat completion has this id."""
    return _with_id(endpoint, ChatIdMeter, id)


def _with_id(endpoint: Endpoint, meter: type[IdMeter], id: str) -> Endpoint:
    return replace(
        endpoint,
        stream_meter=lambda wanted: meter(endpoint.stream_meter(wanted), id, whole=False),
        body_meter=lambda: meter(endpoint.body_meter(), id, whole=True),
        changes_length=True,
    )
