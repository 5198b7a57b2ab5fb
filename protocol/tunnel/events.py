"""Events of a tunnel, returned by ``Connection.events``."""

from __future__ import annotations

from msgspec import Struct

from protocol.messages import Drain, Figures, Hello, RequestHead, ResponseHead


class HelloReceived(Struct, frozen=True):
    """Server side: accept the tunnel by using it, or ``close`` it with UNAUTHORISED."""

    hello: Hello


class StreamOpened(Struct, frozen=True, gc=False):
    """Node side: a request has arrived; with ``ended``, it has no body."""

    stream_id: int
    head: RequestHead
    ended: bool


class HeadReceived(Struct, frozen=True, gc=False):
    stream_id: int
    head: ResponseHead


class DataReceived(Struct, frozen=True, gc=False):
    """Body bytes; call ``Connection.consumed`` once they were passed on, to let more come."""

    stream_id: int
    data: bytes
    ended: bool
    """Node side: the request's body is complete."""


class StreamEnded(Struct, frozen=True, gc=False):
    """Server side: the answer is complete and the stream gone."""

    stream_id: int
    figures: Figures


class StreamReset(Struct, frozen=True, gc=False):
    """Server side, or on a lost connection: the stream is gone.

    Node side: stop the work, then call ``NodeConnection.confirm_reset``.
    """

    stream_id: int
    code: int
    reason: str


class ResetConfirmed(Struct, frozen=True, gc=False):
    """Server side: the node has stopped the work behind a stream that ``reset`` gave up."""

    stream_id: int


class StreamResumed(Struct, frozen=True, gc=False):
    """Node side: a stream of another tunnel continues here, under this id.

    ``Connection.owner`` identifies it.
    """

    stream_id: int


class StreamWritable(Struct, frozen=True, gc=False):
    """There is room again after ``send_data`` has returned False."""

    stream_id: int


class DrainReceived(Struct, frozen=True):
    drain: Drain


class PongReceived(Struct, frozen=True, gc=False):
    round_trip: float
    """Seconds."""


class SilenceNoticed(Struct, frozen=True, gc=False):
    """A probe was not answered in time: ``usable`` is False until the peer answers."""


class ConnectionClosed(Struct, frozen=True):
    """Last event, except those of suspended streams; all others have had ``StreamReset``."""

    code: int
    reason: str
    by_peer: bool


Event = (
    HelloReceived
    | StreamOpened
    | HeadReceived
    | DataReceived
    | StreamEnded
    | StreamReset
    | ResetConfirmed
    | StreamResumed
    | StreamWritable
    | DrainReceived
    | PongReceived
    | SilenceNoticed
    | ConnectionClosed
)
