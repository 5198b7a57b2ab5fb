"""Answers name the model as it was asked for, where its engine has another name for it."""

from __future__ import annotations

import json
import re

import msgspec

from fabric_server.metering.openai import Meter

_OPEN = re.compile(rb'"(?:m(?:o(?:d(?:e(?:l(?:"\s{0,8}(?::\s{0,8}(?:"[^"]{0,600})?)?)?)?)?)?)?)?\Z')
"""The beginning of a field with a model's name, at the end of what has come."""
_LONGEST = 640


class WrappingMeter:
    """Tells what another ``Meter`` does, for those that change what that passes on."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self.before = meter.before
        self._update()

    def _update(self) -> None:
        meter = self._meter
        self.usage, self.events = meter.usage, meter.events
        self.complete, self.done = meter.complete, meter.done
        self.failed, self.torn = meter.failed, meter.torn

    @property
    def sample(self) -> bytes:
        return self._meter.sample

    @property
    def aside(self) -> int:
        return self._meter.aside


class NamingMeter(WrappingMeter):
    """Meters as another ``Meter`` does, and renames the model in what that passes on.

    In JSON text a quote inside a string is written ``\\"``, so that text which a model has written
    never matches.  Only the beginning of such a field is held, until the rest has come.
    """

    def __init__(self, meter: Meter, real: str, asked: str) -> None:
        super().__init__(meter)
        spellings = {spelled for name in (real, f"{real}:latest") for spelled in _spell(name)}
        names = b"|".join(map(re.escape, sorted(spellings)))
        self._field = re.compile(rb'("model"\s{0,8}:\s{0,8})(?:%b)' % names)
        self._asked = msgspec.json.encode(asked)
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        data = self._rename(self._meter.feed(data))
        self._update()
        if not data or data.endswith(b"\n"):
            return data
        begun = _OPEN.search(data, max(0, len(data) - _LONGEST))
        if begun is not None:
            self._held = data[begun.start() :]
            data = data[: begun.start()]
        return data

    def end(self) -> bytes:
        rest = self._rename(self._meter.end())
        self._update()
        return rest

    def _rename(self, data: bytes) -> bytes:
        data, self._held = self._held + data, b""
        return self._field.sub(lambda found: found[1] + self._asked, data)


def _spell(name: str) -> tuple[bytes, ...]:
    """Return a name as programs in Python, Go and PHP write it in JSON."""
    plain, ascii = msgspec.json.encode(name), json.dumps(name).encode()
    return plain, ascii, plain.replace(b"/", b"\\/"), ascii.replace(b"/", b"\\/")
