"""One engine's answer on its way into the stream: filtered, counted, held to the upload limit."""

from __future__ import annotations

from collections.abc import Callable

from fabric_client.proxy.throughput import Throughput, tokens_in
from fabric_client.proxy.upload_limit import LimitedStream, UploadLimit
from fabric_client.proxy.upstream import EngineConnection
from fabric_client.translation import Headers, ResponseFilter
from fabric_client.translation.token_counts import ESTIMATED
from protocol.aio.node import NodeStream
from protocol.messages import Figures, ResponseHead

_PASSED = {"content-type", "content-length", "content-language", "retry-after", ESTIMATED[0]}


def passed_head(status: int, headers: Headers) -> ResponseHead:
    """Return the head of an answer as the server gets it."""
    return ResponseHead(status, [one for one in headers if one[0] in _PASSED])


class ResponseBody:
    """Passes an engine's bytes on to the server."""

    __slots__ = (
        "_clock",
        "_first_byte_at",
        "_send",
        "_sent",
        "_started_at",
        "_tail",
        "_throughput",
        "connection",
        "filter",
        "held",
        "limited",
    )

    def __init__(
        self,
        stream: NodeStream,
        throughput: Throughput,
        uploads: UploadLimit | None,
        clock: Callable[[], float],
    ) -> None:
        """``clock`` gives seconds; the request's time is counted from now."""
        self.connection: EngineConnection | None = None
        """Paused while the stream takes no more; None when nothing is read from an engine."""
        self.filter: ResponseFilter | None = None
        """Translates the body; None: it passes as it is."""
        self.held = 0
        """Bytes for which the filter has returned nothing since it last returned something: it
        reads about so many at its end."""
        self._throughput = throughput
        self._clock = clock
        self._started_at = clock()
        self._first_byte_at = 0.0
        self._sent = 0
        self._tail = (b"", b"")
        """The last two pieces, in which the engine says how many tokens it generated."""
        self._send: Callable[[bytes], bool] = stream.send
        self.limited: LimitedStream | None = None
        """Set when the node has an upload limit."""
        if uploads is not None:
            self.limited = LimitedStream(stream, uploads, self._resume)
            self._send = self.limited.send

    def add(self, data: bytes) -> None:
        """Send a piece; pauses the connection if the stream takes no more."""
        if not self._first_byte_at:
            self._first_byte_at = self._clock()
        if self.filter is not None:
            passed = self.filter.feed(data)
            if not passed:
                self.held += len(data)
                return
            self.held = 0
            data = passed
        self._sent += len(data)
        self._tail = (self._tail[1], data)
        if not self._send(data) and self.connection is not None:
            self.connection.pause()

    def count_whole(self, data: bytes) -> None:
        """Count an answer that goes to the stream whole, and not through ``add``."""
        self.filter = None
        self._first_byte_at = self._first_byte_at or self._clock()
        self._sent = len(data)
        self._tail = (b"", data)

    def add_translated(self, data: bytes) -> None:
        """Send a piece that went through the filter already."""
        filter, self.filter = self.filter, None
        self.add(data)
        self.filter = filter

    def end(self) -> Figures:
        """Send what the filter holds, and count the answer."""
        last, self.filter = self.filter, None
        if last is not None and (rest := last.end()):
            self.add(rest)
        now, start = self._clock(), self._started_at
        first = self._first_byte_at or now
        self._throughput.add(tokens_in(b"".join(self._tail)), start, now)
        return Figures((first - start) * 1000, (now - start) * 1000, self._sent)

    def on_writable(self) -> None:
        """Go on: the stream takes more again."""
        if self.limited is not None:
            self.limited.resume()
        else:
            self._resume()

    def _resume(self) -> None:
        if self.connection is not None:
            self.connection.resume()
