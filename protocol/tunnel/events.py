"""What has happened on a tunnel, as told by ``Connection.events``."""

from __future__ import annotations

from msgspec import Struct

from protocol.messages import Drain, Figures, Hello, RequestHead, ResponseHead


class HelloReceived(Struct, frozen=True):
    """Server side: accept the tunnel by using it, or ``close`` it with UNAUTHORISED."""

    hello: Hello


class StreamOpened(Struct, frozen=True, gc=False):
    """Node side.  ``ended`` says that no body follows."""

    stream_id: int
    head: RequestHead
    ended: bool


class HeadReceived(Struct, frozen=True, gc=False):
    stream_id: int
    head: ResponseHead


class DataReceived(Struct, frozen=True, gc=False):
    """Call ``Connection.consumed`` once the bytes have gone on: that is what lets more come."""

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

    On the node it is an order: stop the work, then call ``Connection.confirm_reset``.
    """

    stream_id: int
    code: int
    reason: str


class ResetConfirmed(Struct, frozen=True, gc=False):
    """Server side: the node has stopped what ``Connection.reset`` asked it to stop."""

    stream_id: int


class StreamResumed(Struct, frozen=True, gc=False):
    """Node side: a stream of another tunnel goes on here, under this id.

    ``Connection.owner`` tells which one it is.
    """

    stream_id: int


class StreamWritable(Struct, frozen=True, gc=False):
    """``send_data`` had answered False; now there is room again."""

    stream_id: int


class DrainReceived(Struct, frozen=True):
    drain: Drain


class PongReceived(Struct, frozen=True, gc=False):
    round_trip: float
    """Seconds."""


class SilenceNoticed(Struct, frozen=True, gc=False):
    """A question has gone out, and nothing has come since: ``usable`` is False until it does."""


class ConnectionClosed(Struct, frozen=True):
    """The last event but for those of suspended streams; all others have had ``StreamReset``."""

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
