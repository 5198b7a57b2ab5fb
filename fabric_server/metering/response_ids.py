"""Responses get ids of the server's, where they are stored: some engines' ids repeat soon."""

from __future__ import annotations

import re

from fabric_server.metering.naming import WrappingMeter
from fabric_server.metering.openai import Meter

MAX_ANSWER = 2 * 2**20
"""Bytes of an answer in one piece; a larger one keeps its id."""
_FIELD = re.compile(rb'"id"\s{0,8}:\s{0,8}"(resp_[^"\\]{0,200})"')


class IdMeter(WrappingMeter):
    """Meters as another ``Meter`` does, and replaces the response's id in what that passes on.

    Text that a model has written never matches, because its quotes are escaped.
    """

    def __init__(self, meter: Meter, id: str, *, whole: bool) -> None:
        """``whole``: the answer is in one piece, which is held until its end."""
        super().__init__(meter)
        self._id = id.encode()
        self._whole = whole
        self._held = bytearray()
        self._field: re.Pattern[bytes] | None = None

    def feed(self, data: bytes) -> bytes:
        data = self._meter.feed(data)
        self._update()
        if not self._whole:
            return self._replace(data)
        self._held += data
        if len(self._held) <= MAX_ANSWER:
            return b""
        return self._take()

    def end(self) -> bytes:
        rest = self._meter.end()
        self._update()
        if not self._whole:
            return self._replace(rest)
        self._held += rest
        return self._replace(self._take())

    def _take(self) -> bytes:
        """Return what was held; nothing is held any more."""
        data, self._held, self._whole = bytes(self._held), bytearray(), False
        return data

    def _replace(self, data: bytes) -> bytes:
        if self._field is None:
            found = _FIELD.search(data)
            if found is None:
                return data
            self._field = re.compile(rb'("id"\s{0,8}:\s{0,8})"%b"' % re.escape(found[1]))
        return self._field.sub(rb'\1"%b"' % self._id, data)
