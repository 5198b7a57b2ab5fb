"""The filter of an answer's reasoning: chosen by the head of the engine's response."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

from fabric_client.reasoning.body_filter import BodyFilter
from fabric_client.reasoning.form_filter import FormFilter
from fabric_client.reasoning.stream_filter import StreamFilter
from fabric_client.translation import Headers

HEADER = "x-fabric-reasoning"
RAW = "raw"
"""The header's value that leaves an answer as its engine wrote it."""
_OK = HTTPStatus.OK.value
_KINDS = {kind: kind for kind in ("application/json", "text/event-stream")}
"""Content types as engines mostly write them."""


class ReasoningFilter:
    """``fabric_client.translation.ResponseFilter``; make one for each answer.

    Holds at most an event (1 MiB) or an unstreamed answer (4 MiB); longer ones pass unchanged.
    Don't make one for a request with the header ``x-fabric-reasoning: raw``; don't call ``end`` if
    the engine breaks off: what is held is then less than a marker or an event.
    """

    __slots__ = ("_body", "_markers", "_stream", "end", "feed")

    def __init__(self, stream: bool | None = None, *, inline: bool = True) -> None:
        """``stream``: the user asked for one; None: what follows sees to the answer's form.

        ``inline``: look for reasoning in the text of answers too; otherwise only fields get
        their alias and ``usage`` its token shares."""
        self._stream = stream
        self._markers = inline
        self._body: BodyFilter | FormFilter | None = None
        self.feed: Callable[[bytes], bytes] = _pass_through
        self.end: Callable[[], bytes] = bytes

    @property
    def decided(self) -> tuple[int, Headers] | None:
        """The head of an unstreamed answer, once that has been read."""
        return None if self._body is None else self._body.decided

    def head(self, status: int, headers: Headers) -> tuple[int, Headers] | None:
        if status != _OK:
            return status, headers
        kind, others = "", []
        for header in headers:
            name = header[0]
            if name == "content-type":
                kind = _KINDS.get(header[1]) or header[1].partition(";")[0].strip().lower()
            elif name == "content-length":
                continue
            elif name == "content-encoding":
                return status, headers
            others.append(header)
        if kind == "text/event-stream" and self._stream is not False:
            events = StreamFilter(self._markers)
            self.feed, self.end = events.feed, events.end
            return status, others
        if kind == "application/json" and not self._stream:
            body = self._body = BodyFilter(self._markers, others)
            self.feed, self.end = body.feed, body.end
            return None
        if self._stream is None:
            return status, headers
        untyped = [one for one in others if one[0] != "content-type"]
        form = self._body = FormFilter(stream=self._stream, inline=self._markers, headers=untyped)
        self.feed, self.end = form.feed, form.end
        return None


def _pass_through(data: bytes) -> bytes:
    return data
