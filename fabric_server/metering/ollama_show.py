"""``/api/show`` on its way from a node: what its owner's disk looks like stays there."""

from __future__ import annotations

from typing import Any

import msgspec

from fabric_server.metering.openai import UNREADABLE, Usage

MAX_SHOWN = 4 * 1024 * 1024
"""Licences and templates are some 100 KiB at most; the vocabulary is not asked for."""
_OMITTED = b'{"error":"what the engine tells of this model can\'t be shown here"}'


class ShowMeter:
    """Holds the answer, and lets it go at its end without the paths in it."""

    complete = True
    done = torn = False
    usage = Usage()

    def __init__(self) -> None:
        self.failed = False
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
    """The ``modelfile`` begins with the path of a file, and what else it says is told beside it;
    a model that was made from a file has that for its parent."""
    kept = {name: value for name, value in shown.items() if name != "modelfile"}
    details = kept.get("details")
    if isinstance(details, dict) and _is_path(details.get("parent_model")):
        kept["details"] = details | {"parent_model": ""}
    return kept


def _is_path(name: object) -> bool:
    return isinstance(name, str) and (name.startswith(("/", "~", ".")) or "\\" in name)
