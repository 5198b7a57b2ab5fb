"""The answer at ``/v1/responses`` that is to be stored: a stream's last event has all of it."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from fabric_server.edge.response import Connection
from fabric_server.jobs.held_answer import HeldAnswer
from fabric_server.metering.sse import UNREADABLE, events_in, read_data
from fabric_server.net.memory_budget import Holding

_LAST = re.compile(
    rb'"type"\s*:\s*"response\.(?:completed|incomplete)"'
    rb"|(?:^|[\r\n])event: ?response\.(?:completed|incomplete)[\r\n]"
)
"""Begins the last event; inside a text its quotes and line ends are escaped."""
_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class HeldResponse(HeldAnswer):
    """Holds back an answer in one piece, or the last events of a stream."""

    __slots__ = ("previous",)

    def __init__(
        self,
        connection: Connection,
        holding: Holding,
        *,
        streamed: bool,
        given: bytes = b"",
        previous: str | None = None,
    ) -> None:
        super().__init__(connection, holding, streamed=streamed, given=given)
        self.previous = previous
        """Id of the response from which this one goes on."""

    def find_end(self, data: bytes) -> int | None:
        return 0 if _LAST.search(data) is not None else None

    def answer(self) -> dict[str, msgspec.Raw] | None:
        """Return the fields of the response object; None when there is none, or no whole one."""
        data = self.held
        if not data:
            return None
        try:
            return _last_response(data) if self._streamed else _decode(data)
        except UNREADABLE:
            return None


def _last_response(data: bytes) -> dict[str, msgspec.Raw] | None:
    """Return the response of the event that ends a stream."""
    for event in events_in(data):
        text = read_data(event)
        if text is None or _LAST.search(event) is None:
            continue
        fields = _decode(text)
        kind: Any = msgspec.json.decode(fields.get("type", b"null"))
        if kind in ("response.completed", "response.incomplete") and "response" in fields:
            return _decode(fields["response"])
    return None
