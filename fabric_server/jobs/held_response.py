"""The response to a request whose answer is to be stored before the client has all of it."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from fabric_server.dialects.errors import ApiError
from fabric_server.edge.response import Connection, Response
from fabric_server.metering.openai import UNREADABLE
from fabric_server.metering.response_ids import MAX_ANSWER
from fabric_server.metering.sse import events_in, read_data
from fabric_server.net.memory_budget import Holding

_LAST = re.compile(
    rb'"type"\s*:\s*"response\.(?:completed|incomplete)"'
    rb"|(?:^|[\r\n])event: ?response\.(?:completed|incomplete)[\r\n]"
)
"""Begins the last event; inside a text its quotes and line ends are escaped."""
_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class HeldResponse(Response):
    """Holds back an answer in one piece, or the last events of a stream, until ``release``.

    So a client that has it all can use its id: it is stored by then.  An answer, or a last event,
    of more than ``MAX_ANSWER`` bytes is passed on, and not stored.
    """

    __slots__ = ("_ended", "_held", "_holding", "_size", "_streamed", "given", "previous")

    def __init__(
        self,
        connection: Connection,
        holding: Holding,
        *,
        streamed: bool,
        given: bytes = b"",
        previous: str | None = None,
    ) -> None:
        """``holding`` counts what is held back, and ``given``."""
        super().__init__(connection)
        self.given = given
        """What is to be stored with the answer; empty once that can't be stored any more."""
        self.previous = previous
        """Id of the response from which this one goes on."""
        self._streamed = streamed
        self._holding = holding
        self._held: list[bytes] | None = []
        """None: nothing is held back any more."""
        self._size = 0
        self._ended = False

    def write(self, data: bytes) -> None:
        held = self._held
        if held is None or self.status >= 300:
            super().write(data)
        elif held or not self._streamed or _LAST.search(data):
            self._hold(held, data)
        else:
            super().write(data)

    def _hold(self, held: list[bytes], data: bytes) -> None:
        held.append(data)
        self._size += len(data)
        self.bytes_out += len(data)
        if self._size > MAX_ANSWER or not self._has_memory():
            self._let_go()

    def _has_memory(self) -> bool:
        """Return whether the answer may be held back; otherwise it is only passed on."""
        try:
            self._holding.reach(len(self.given) + self._size)
        except ApiError:
            return False
        return True

    def finish(self) -> None:
        if self._held:
            self._ended = True
        else:
            super().finish()

    def abort(self) -> None:
        self._let_go()
        super().abort()

    def answer(self) -> dict[str, msgspec.Raw] | None:
        """Return the fields of the response object; None when there is none, or no whole one."""
        if not self._ended or self.status != 200 or not self._held:
            return None
        data = b"".join(self._held)
        try:
            return _last_response(data) if self._streamed else _decode(data)
        except UNREADABLE:
            return None

    def drop(self) -> None:
        """Forget what was held back: nobody reads it."""
        self._held, self._ended, self.given = None, False, b""
        self._holding.release()

    def release(self) -> None:
        """Send what was held back, to the end; call it on every path."""
        self._let_go()
        if self._ended:
            super().finish()

    def _let_go(self) -> None:
        held, self._held = self._held, None
        if held:
            self.bytes_out -= self._size
            super().write(b"".join(held))
        self.given = b""
        self._holding.release()


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
