"""The meter of ``/api/show``: takes out paths on the disk of the node's owner."""

from __future__ import annotations

from typing import Any

import msgspec

from fabric_server.metering.sse import UNREADABLE
from fabric_server.metering.usage import Usage

MAX_SHOWN = 4 * 1024 * 1024
"""Limit in bytes; licences and templates have some 100 KiB, and no vocabulary is requested."""
_OMITTED = b'{"error":"the engine\'s description of this model can\'t be shown"}'


class ShowMeter:
    """Holds the answer back, and passes it on at its end without paths."""

    events = 0
    before = 0
    aside = 0
    sample = b""
    complete = True
    done = False
    failed = False
    torn = False

    def __init__(self) -> None:
        self.usage = Usage()
        self._text = bytearray()

    def feed(self, data: bytes) -> bytes:
        if len(self._text) <= MAX_SHOWN:
            self._text += data
        return b""

    def end(self) -> bytes:
        try:
            shown = msgspec.json.decode(self._text) if len(self._text) <= MAX_SHOWN else None
        except UNREADABLE:
            shown = None
        if not isinstance(shown, dict):
            self.failed = True
            return _OMITTED
        return msgspec.json.encode(without_paths(shown))


def without_paths(shown: dict[str, Any]) -> dict[str, Any]:
    """Remove ``modelfile``, and a parent model that is a path.

    The modelfile begins with a path, and the rest of it is found in other fields.
    """
    kept = {name: value for name, value in shown.items() if name != "modelfile"}
    details = kept.get("details")
    if isinstance(details, dict) and _is_path(details.get("parent_model")):
        kept["details"] = details | {"parent_model": ""}
    return kept


def _is_path(name: object) -> bool:
    return isinstance(name, str) and (name.startswith(("/", "~", ".")) or "\\" in name)
