"""Messages between servers, which forward requests to each other over tunnels of their own.

The server that a client reached opens a stream at the server that holds the node, the request's
home.  OPEN and HEAD are those of a node's tunnel with more fields behind them.  Three more kinds of
stream have messages for their answer, each behind its length (u32, big-endian)::

    WAIT     Queued …, then Granted or Declined   a place in the home's fair queue
    DIGEST   Digest, Digest …                     what the home's engines serve, and their load
    ASK      View                                 what the other server shows of itself, or does
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct as Layout
from typing import Annotated, Any, Generic, TypeVar

from msgspec import Meta, Raw, Struct

from protocol import messages
from protocol.messages import (
    Count,
    EngineReport,
    ErrorCode,
    Figure,
    ModelReport,
    Name,
    Region,
    RequestHead,
    ResponseHead,
    Seconds,
    Text,
)

REQUEST, WAIT, DIGEST, ASK = 0, 1, 2, 3
"""What a stream between servers is for: ``ForwardedRequest.purpose``."""

MAX_STREAMS = 8192
"""Streams at once between two servers, in each direction."""
MAX_ROWS = 512
"""Rows of a digest: a server groups its engines by what they serve."""
MAX_MESSAGE = 8 * 1024 * 1024
"""Bytes of one message within a stream."""
MAX_SLOTS = 10_000_000
MAX_VIEW_ROWS = 5000
"""Rows of one view: what is beyond is left out, and the view is marked as incomplete."""
MAX_VIEW = MAX_MESSAGE // 2
"""Bytes of the rows of one view."""

_LENGTH = Layout(">I")
_Hash = Annotated[int, Meta(ge=0, le=2**32 - 1)]
_Names = Annotated[tuple[Name, ...], Meta(max_length=256)]


class ForwardedRequest(RequestHead, frozen=True, array_like=True, gc=False):
    """Payload of OPEN between servers: the request, and what an engine must meet to take it.

    ``engine`` is the digest's row to which the sender counts the request; the home chooses the
    engine, also one that is in another row by then.  A forwarded request is never forwarded again.
    """

    purpose: Annotated[int, Meta(ge=0, le=3)] = REQUEST
    model: Name = ""
    key_id: Name = ""
    priority: Annotated[int, Meta(ge=0, le=2)] = 1
    capabilities: _Names = ()
    regions: _Names | None = None
    tokens: Count = 0
    prefix: Annotated[tuple[_Hash, ...], Meta(max_length=64)] = ()
    excluded: _Names = ()
    """Nodes that have failed this request."""
    kinds: _Names | None = None
    quantization: Name = ""
    digest: Name = ""
    begun_kind: Name = ""
    begun: ModelReport | None = None
    """The report of the engine that has begun the answer, by the same weights as which it is to be
    continued; with its kind."""
    granted: bool = False
    """The home has given a slot to this request, at the end of a stream of kind WAIT."""


class ForwardedResponse(ResponseHead, frozen=True, array_like=True, gc=False):
    """Payload of HEAD between servers: the answer's head, and the engine that answers.

    With a ``code`` the request has failed at this engine before its head: the status means nothing,
    and END follows.
    """

    node: Name = ""
    engine: Name = ""
    code: ErrorCode = 0
    reason: Text = ""


class Queued(Struct, frozen=True, tag="queued"):
    """The request's place in the queue; sent again when it has changed."""

    position: Count


class Granted(Struct, frozen=True, tag="granted"):
    """A slot is held for the request, for ``GRANT_SECONDS``: open its stream with ``granted``."""

    row: Name
    """The digest's row of the engine."""


class Declined(Struct, frozen=True, tag="declined"):
    """The request can't wait here, or has waited in vain: the error for its client."""

    status: Annotated[int, Meta(ge=400, le=599)]
    code: Name
    message: Annotated[str, Meta(max_length=16_384)]
    kind: Name
    retry_after: Seconds | None = None


class HomeEngine(EngineReport, frozen=True, kw_only=True, omit_defaults=True):
    """A row of a digest: the engines of a server that serve the same, as one.

    ``elsewhere`` counts the slots that are held by others than the receiver.
    """

    slots: Annotated[int, Meta(ge=0, le=MAX_SLOTS)]
    region: Region = ""
    nodes: Count = 1
    """How many nodes these engines are of."""


class Load(Struct, frozen=True, array_like=True, gc=False):
    """The present load of a row."""

    row: Name
    elsewhere: Count


class QueueLoad(Struct, frozen=True, array_like=True, gc=False):
    """A queue that is not empty."""

    model: Name
    waiting: Count
    service: Figure
    """Seconds that an answer takes on average."""


class DigestUpdate(Struct, frozen=True, tag="digest", omit_defaults=True):
    """The engines of a server's own nodes, and how busy they are."""

    rows: Annotated[list[HomeEngine], Meta(max_length=MAX_ROWS)] | None = None
    """The whole list; None: as before."""
    load: Annotated[list[Load], Meta(max_length=MAX_ROWS)] = []
    """The rows whose load has changed."""
    queues: Annotated[list[QueueLoad], Meta(max_length=MAX_ROWS)] = []
    """All queues."""
    nodes: int = 0
    """Nodes that requests can be sent to."""


class View(Struct, frozen=True, tag="view"):
    """Rows that a server shows of itself, in answer to a stream of kind ASK.

    OPEN has the view's name as its ``path``, what it is about as its ``request_id`` (one request or
    node; empty: all), and the management key that asks as its ``key_id``.  The server that asks has
    checked what that key may do.
    """

    rows: Annotated[list[Raw], Meta(max_length=MAX_VIEW_ROWS)]
    """Each encoded by itself, of the type that the view's name stands for."""
    complete: bool = True
    """False: there are more rows than a view may have."""


WaitMessage = Queued | Granted | Declined

T = TypeVar("T")


def pack(message: Struct) -> bytes:
    """Return a message behind its length."""
    payload = messages.encode(message)
    return _LENGTH.pack(len(payload)) + payload


class Unpacker(Generic[T]):
    """Reads messages of one kind, in pieces cut anywhere.  ``feed`` raises one of ``UNREADABLE``
    on what is none."""

    def __init__(self, kind: Any, limit: int = MAX_MESSAGE) -> None:
        self._decode: Callable[[bytes], T] = messages.decoder(kind).decode
        self._limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[T]:
        buffer, found, at = self._buffer, list[T](), 0
        buffer += data
        while len(buffer) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, at)
            if length > self._limit:
                raise ValueError(f"a message of {length} bytes is over its limit")
            start = at + _LENGTH.size
            if len(buffer) < start + length:
                break
            at = start + length
            found.append(self._decode(bytes(buffer[start:at])))
        del buffer[:at]
        return found
