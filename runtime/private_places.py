"""Paths, URLs and addresses in texts of engines, which are their owners' own business."""

from __future__ import annotations

import re
from collections.abc import Callable

_END = r"[^\s\"'`<>|*?;()\[\]{}]"
_PATH = re.compile(
    r"(?<![\w/.:@-])"  # not within a URL or a word
    rf"(?:file:/*|(?:[A-Za-z]:)?[\\/]{{1,2}}|~[\w.-]*[\\/]|\.{{1,2}}[\\/])"
    rf"(?!v\d+/|api/|ollama/){_END}*[\\/]?{_END}*",
    re.IGNORECASE,
)
"""Paths of files, but not those of the public API, which engines name in their errors."""
_ADDRESS = re.compile(
    r"\b[a-z][a-z0-9+.-]{1,15}://[^\s\"'`<>]+"
    r"|(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?(?![\w.]\w)"
    r"|\[[0-9a-f:.%]*:[0-9a-f:.%]*:[0-9a-f:.%\w]*\](?::\d+)?"
    r"|(?<![\w:])(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}(?![\w:])"
    r"|(?<![\w:])(?:[0-9a-f]{1,4}(?::[0-9a-f]{1,4}){0,6})?::(?:[0-9a-f]{1,4}(?::[0-9a-f]{1,4}){0,6})"
    r"(?:%\w{1,15})?(?![\w:])"
    r"|(?<![\w.-])(?:localhost|[\w-]{1,63}\.(?:local|lan|home|internal|localdomain))\b(?::\d+)?",
    re.IGNORECASE,
)
"""URLs, and addresses of machines."""


def last_part(path: str) -> str:
    """Return the name of a path's file or folder."""
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]


def hide_places(text: str, shorten: Callable[[str], str] = last_part) -> str:
    """Return the text with addresses left out, and with ``shorten`` of each path in its place."""

    def without_folders(found: re.Match[str]) -> str:
        path = found[0]
        ending = path[len(path.rstrip(".,:!")) :]
        place = path.removesuffix(ending) if ending else path
        if "/" not in place.strip("/") and "\\" not in place.strip("\\") and ":" not in place:
            return path  # one name alone, such as /metrics
        return (shorten(place) or "(a path)") + ending

    return _ADDRESS.sub(_without_address, _PATH.sub(without_folders, text))


def _without_address(found: re.Match[str]) -> str:
    url = found[0]
    ending = url[len(url.rstrip(".,:;!)")) :]
    return f"(an address){ending}"
