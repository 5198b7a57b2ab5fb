"""The client's side of one attempt: what of its answer is written, when, and how it is ended."""

from __future__ import annotations

from functools import lru_cache

from fabric_server.dialects.endpoints import CHAT, LINES
from fabric_server.dialects.errors import ApiError
from fabric_server.edge.request import Headers, Request
from fabric_server.metering.openai import Meter, NoMeter
from fabric_server.proxy.continuation import Continuation
from fabric_server.routing.choice import Choice
from protocol.messages import ResponseHead

_RESPONSE_HEADERS = frozenset(
    {"content-type", "content-language", "retry-after", "x-fabric-estimated"}
)
_STREAM_HEADERS = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
WHOLE_ANSWER = 256 * 1024
"""Bytes up to which an answer that is no stream reaches the client whole or not at all: until then
another node can be asked."""


@lru_cache(maxsize=256)  # an engine sends the same few with every answer
def _encode(name: str, value: str) -> tuple[bytes, bytes]:
    return name.encode(), value.encode("latin-1", "replace")


class AnswerWriter:
    """Writes the answer of one attempt, metered, to the client.

    Nothing is written before ``start``, which sends the head: until then another attempt may take
    over.  A stream passes chunk by chunk; ``Attempt.on_data`` writes the chunks itself, because a
    call more for each would cost more than the rest of their way.  Any other answer is buffered by
    ``hold`` up to ``WHOLE_ANSWER`` bytes, and its last bytes until the node has confirmed its end.
    """

    __slots__ = (
        "_continuation",
        "_headers",
        "_held",
        "_held_size",
        "_kind",
        "announced",
        "bytes_received",
        "is_rest",
        "last_written",
        "meter",
        "request",
        "started",
        "status",
        "streamed",
        "usage_requested",
    )

    def __init__(
        self,
        request: Request,
        usage_requested: bool,
        choice: Choice,
        continuation: Continuation | None = None,
        *,
        is_rest: bool = False,
    ) -> None:
        """``is_rest``: this attempt brings the rest of an answer that broke off."""
        self.request = request
        self.is_rest = is_rest
        self.meter: Meter = NoMeter()
        self.status = 0
        """The engine's; 0 before its head has come."""
        self.bytes_received = 0
        """Bytes of the body, from the node."""
        self.announced: int | None = None
        """The body's length, where the engine's head has it and the client's may."""
        self.streamed = False
        self.started = False
        """The client has got something of this answer; comments do not count."""
        self.last_written = b""
        """The chunk of a stream that was written last."""
        self.usage_requested = usage_requested
        """A body that flows may ask for usage at its end: it is set again before the answer."""
        self._kind = choice.engine.kind
        self._continuation = continuation
        self._headers: Headers = (
            [(b"x-fabric-route", choice.route_reason.encode())] if choice.route_reason else []
        )
        self._held: list[bytes] = []
        self._held_size = 0

    @property
    def misfit(self) -> bool:
        """The client has got the head of a stream, and this is neither a stream nor an error.

        In lines of JSON an answer in one piece is the stream's only line: so Ollama answers who
        asks it to load a model.
        """
        if self.streamed or self.status >= 300 or not self.request.response.comments_sent:
            return False
        endpoint = self.request.endpoint or CHAT
        return endpoint.streams != LINES or (b"content-type", b"application/json") not in (
            (name, value.partition(b";")[0].strip().lower()) for name, value in self._headers
        )

    @property
    def between_events(self) -> bool:
        """The client has whole events of a stream so far, and there are more to come."""
        meter = self.meter
        return self.streamed and self.status < 300 and not (meter.torn or meter.done)

    @property
    def delivered(self) -> bool:
        """The client has got the very last marker; only the node's confirmation is missing."""
        return self.started and self.meter.done and not self.meter.failed

    def read_head(self, head: ResponseHead) -> None:
        self.status, endpoint = head.status, self.request.endpoint or CHAT
        for name, value in head.headers:
            if name == "content-length":
                # Longer numbers are no lengths, and take Python long to read.
                if value.isascii() and value.isdigit() and len(value) < 16:
                    self.announced = int(value)
            elif name in _RESPONSE_HEADERS and value.isprintable():
                self._headers.append(_encode(name, value))
                if name == "content-type" and endpoint.streams is not None:
                    self.streamed = value.lower().startswith(endpoint.streams)
        if self.streamed:
            self._headers += _STREAM_HEADERS
            self.announced = None  # the usage chunk may be taken out
        if head.status < 300:
            if self.streamed:
                self.meter = endpoint.stream_meter(self.usage_requested)
                if self._continuation is not None:
                    self.meter = self._continuation.meter(
                        self.meter, self._kind, splice=self.is_rest
                    )
            else:
                self.meter = endpoint.body_meter()
                if endpoint.changes_length:
                    self.announced = None

    def start(self) -> None:
        """Send the head: from here on this attempt's answer is the client's."""
        self.started = True
        if self._continuation is None:
            self.request.body.forget()
        if self.is_rest:
            self.request.send_ahead(b": continued on another node\n\n")
        self.request.start_response(self.status, self._headers, self.announced)

    def hold(self, data: bytes) -> None:
        """Buffer ``data`` of an answer that is no stream; write what has become too large for
        that, unless it is all that was announced."""
        self._held.append(data)
        self._held_size += len(data)
        if self._held_size > WHOLE_ANSWER and self.bytes_received != self.announced:
            if not self.started:
                self.start()
            self.request.response.write(b"".join(self._held))
            self._held.clear()
            self._held_size = 0

    def flush(self, rest: bytes) -> None:
        """Write all that is buffered, and the answer's ``rest``: it is here to its end."""
        if rest or not self._held:
            self._held.append(rest)
        if not self.started:
            if self.announced is None and not self.streamed:
                self.announced = sum(map(len, self._held))
            self.start()
        held = self._held
        self.request.response.write(b"".join(held) if len(held) > 1 else held[0])

    def write_final_chunk(self) -> bool:
        """Write the end of a stream that has all its tokens; False when this is none."""
        if self._continuation is None or self.usage_requested:  # its prompt's tokens are not known
            return False
        chunk = self._continuation.final_chunk()
        if chunk:
            self.request.response.write(chunk)
        return bool(chunk)

    def write_error(self, error: ApiError) -> bool:
        """Write an error event; False when this is no stream, so that only a cut connection tells
        the client that the answer is broken."""
        request = self.request
        if not self.streamed and not request.response.comments_sent:
            return False
        # Half an event that was held back is of no use; one that was not must be ended.
        gap = request.dialect.separator if self.meter.torn else b""
        request.response.write(gap + error.event(request.dialect, request.id, self.last_written))
        return True
