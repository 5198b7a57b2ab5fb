"""One request as its engine is sent it: HTTP/1.1 head and body.  Does no I/O."""

from __future__ import annotations

from fabric_client.proxy.preparation import ASKED_OTHERWISE, Prepare
from protocol.messages import RequestHead

MAX_BODY = 64 * 2**20
"""Bytes of a body that is read whole.  A server's own limit is mostly lower."""
MAX_REPLAY = 256 * 1024
"""Bytes of a streamed body that are kept until the engine responds, to be replayed if a warm
connection proves dead."""

_FORWARDED_HEADERS = frozenset(
    {"content-type", "accept", "openai-beta", "anthropic-version", "anthropic-beta"}
)


class RequestBody:
    """Collects the body, and encodes it for the engine.

    With ``prepare`` it is read whole, and ``replace`` is called before ``encode_start``; without,
    its pieces go on as they come.
    """

    __slots__ = (
        "_path",
        "_replay",
        "_size",
        "ended",
        "head",
        "prepare",
        "received",
        "translated",
        "usage",
        "usage_dropped",
    )

    def __init__(self, head: RequestHead, ended: bool, prepare: Prepare | None) -> None:
        """``ended``: there is no body."""
        self.head = head
        self.ended = ended
        self.prepare = prepare
        self.received = 0
        """Bytes that the server has sent."""
        self.translated = False
        """The engine is asked on another path, in another dialect."""
        self.usage_dropped = False
        """``drop_usage`` has taken something out."""
        self._path = head.path
        self._size = 0 if ended and head.body_size is None else head.body_size
        """Bytes of the body; None when that is unknown, so that it is sent in chunks."""
        self._replay: list[bytes] | None = []
        self.usage: tuple[int, int] | None = None
        """Where it asks for usage in a stream, see ``preparation.find_usage``; None also if that
        was not looked for."""

    @property
    def replayable(self) -> bool:
        return self._replay is not None

    def outgrows_replay(self) -> bool:
        """Return whether part of it is dropped before the engine responds.

        It can't be sent twice then: a warm connection, which the engine may have closed, is not
        for it.
        """
        if self.prepare is not None or self.ended:
            return False
        return self._size is None or self._size > MAX_REPLAY

    def add(self, data: bytes, ended: bool) -> bool:
        """Return False if more has come than the head announced."""
        self.ended = ended
        self.received += len(data)
        if self._replay is not None:
            self._replay.append(data)
        announced = self.head.body_size
        return announced is None or self.received <= announced

    def take(self) -> list[bytes]:
        """Return the whole body, in pieces; it is to be replaced."""
        pieces, self._replay = self._replay or [], []
        return pieces

    def replace(self, path: str, pieces: list[bytes], usage: tuple[int, int] | None) -> None:
        self._path = path
        self.translated = path != self.head.path
        self._size = sum(map(len, pieces))
        self._replay = pieces
        self.usage = usage

    def drop_usage(self) -> bool:
        """Take out what asks for usage in a stream, which the server or a translation has put in.

        False if it is not there, or the body is not here any more.
        """
        if self._replay is None or self.usage is None or self.usage == ASKED_OTHERWISE:
            return False
        start, stop = self.usage
        at, kept = 0, []
        for piece in self._replay:
            kept.append(piece[: max(start - at, 0)] + piece[max(stop - at, 0) :])
            at += len(piece)
        self._replay, self.usage = kept, None
        self._size = sum(map(len, kept))
        self.usage_dropped = True
        return True

    def forget(self) -> None:
        """Drop what would be sent again: the engine has responded, or it has become too much."""
        self._replay = None

    def encode_start(self, prefix: str, fields: str) -> list[bytes]:
        """Return the head and what there is of the body, to be written at once.

        ``prefix`` is put before the path; ``fields`` are the header fields of every request to the
        engine.
        """
        head, pieces = self._encode_head(prefix, fields), self._replay or ()
        if self._size is None:
            return [head + self.encode(b"".join(pieces))]
        if self._size <= MAX_REPLAY:
            return [b"".join((head, *pieces))]
        return [head, *pieces]  # to join them would take long

    def encode(self, data: bytes) -> bytes:
        """Return the next piece of the body as it goes on the wire."""
        if self._size is not None:
            return data
        chunk = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
        return chunk + b"0\r\n\r\n" if self.ended else chunk

    def _encode_head(self, prefix: str, fields: str) -> bytes:
        head, size = self.head, self._size
        if self.translated:
            fields += "content-type: application/json\r\n"
        else:
            for name, value in head.headers:
                if name in _FORWARDED_HEADERS and value.isprintable():
                    fields += f"{name}: {value}\r\n"
        if head.request_id.isidentifier():
            fields += f"x-request-id: {head.request_id}\r\n"
        length = "transfer-encoding: chunked" if size is None else f"content-length: {size}"
        return (f"{head.method} {prefix}{self._path} HTTP/1.1\r\n{fields}{length}\r\n\r\n").encode(
            "latin-1", "replace"
        )
