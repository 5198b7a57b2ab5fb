"""Answers get ids of the server's, where they are stored: some engines' ids repeat soon."""

from __future__ import annotations

import re

import msgspec

from fabric_server.metering.naming import WrappingMeter
from fabric_server.metering.openai import Meter
from fabric_server.metering.sse import UNREADABLE

MAX_ANSWER = 2 * 2**20
"""Bytes of an answer in one piece; a larger one keeps its id."""
_FIELD = re.compile(rb'"id"\s{0,8}:\s{0,8}"(resp_[^"\\]{0,200})"')
_CHUNK = re.compile(rb"((?:^|[\r\n])data:[ \t]*)(\{[^\r\n]*)")
_is_whole = re.compile(rb"[ \t\r\n]*\{").match
_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class IdMeter(WrappingMeter):
    """Meters as another ``Meter`` does, and replaces the answer's id in what that passes on."""

    def __init__(self, meter: Meter, id: str, *, whole: bool) -> None:
        """``whole``: the answer is in one piece, which is held until its end."""
        super().__init__(meter)
        self._id = msgspec.Raw(_encode(id))
        self._whole = whole
        self._held = bytearray()

    def feed(self, data: bytes) -> bytes:
        data = self._meter.feed(data)
        self._update()
        if not self._whole:
            return self.replace(data)
        self._held += data
        if len(self._held) <= MAX_ANSWER:
            return b""
        return self._take()

    def end(self) -> bytes:
        rest = self._meter.end()
        self._update()
        if not self._whole:
            return self.replace(rest)
        self._held += rest
        return self.replace(self._take())

    def _take(self) -> bytes:
        """Return what was held; nothing is held any more."""
        data, self._held, self._whole = bytes(self._held), bytearray(), False
        return data

    def replace(self, data: bytes) -> bytes:
        """Return a whole answer, or whole events, with the server's id."""
        raise NotImplementedError


class ResponseIdMeter(IdMeter):
    """Replaces the id of a response, in its events too.

    Text that a model has written never matches, because its quotes are escaped.
    """

    def __init__(self, meter: Meter, id: str, *, whole: bool) -> None:
        super().__init__(meter, id, whole=whole)
        self._field: re.Pattern[bytes] | None = None

    def replace(self, data: bytes) -> bytes:
        if self._field is None:
            found = _FIELD.search(data)
            if found is None:
                return data
            self._field = re.compile(rb'("id"\s{0,8}:\s{0,8})"%b"' % re.escape(found[1]))
        return self._field.sub(rb"\1%b" % bytes(self._id), data)


class ChatIdMeter(IdMeter):
    """Replaces the id at the top of a chat completion, or of each of its chunks.

    Engines call them as they like, or not at all, and tools' calls have ids as well.
    """

    def replace(self, data: bytes) -> bytes:
        if _is_whole(data):
            return self._with_id(data)
        return _CHUNK.sub(lambda found: found[1] + self._with_id(found[2]), data)

    def _with_id(self, text: bytes) -> bytes:
        try:
            fields = _decode(text)
        except UNREADABLE:
            return text
        if "choices" not in fields:  # an error has no id
            return text
        fields["id"] = self._id
        return _encode(fields)
