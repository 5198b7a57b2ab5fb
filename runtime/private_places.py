"""Paths, URLs and addresses in texts of engines, which are their owners' own business."""

from __future__ import annotations

import re
from collections.abc import Callable

MAX_TEXT = 4000
"""Characters of a text that are looked at; what comes after them is left out."""
_END = r"[^\s\"'`<>|*?;()\[\]{}]"
_WORD = r"[^\s\"'`<>|*?;:,\[\]{}\\/]{1,64}"
_FOLDER = rf"[^\s\"'`<>|*?;\[\]{{}}\\/]{{0,256}}(?:\x20{_WORD}){{0,3}}[\\/]+"
"""A folder on the way of a path: its name may have spaces."""
_HOME = r"(?:\w{1,16}[\\/]+){0,2}(?:Users|home|Documents\x20and\x20Settings)"
_ROOTS = rf"(?:{_HOME}|Volumes|mnt|media|srv|opt|data|root|var|run|Library|Applications)"
_PATH = re.compile(
    r"(?:(?<![\w/.:@-])|(?<=:)(?!//))"  # not within a URL or a word
    r"(?:"
    # Those that lie where people's names are, or begin as only a path does.
    rf"(?:file:/*)?(?P<home>(?:[A-Za-z]:)?[\\/]+{_HOME}[\\/]+{_WORD}"
    rf"(?:(?:\x20{_WORD}){{0,2}}(?=[\"'`:]|\Z)|(?=[\s,;)])(?!\x20{_FOLDER})))"
    rf"|(?:(?:file:/*)?(?:[A-Za-z]:[\\/]+|[\\/]+{_ROOTS}[\\/]+)"
    rf"|\\\\+|~[\w.-]{{0,64}}[\\/])(?:{_FOLDER})*{_END}*"
    rf"|(?:file:/*|[\\/]{{1,2}}|\.{{1,2}}[\\/])(?!v\d{{1,3}}/|api/|ollama/){_END}*"
    r")",
    re.IGNORECASE,
)
"""Paths of files, but not those of the public API, which engines name in their errors."""
_ADDRESS = re.compile(
    r"\b[a-z][a-z0-9+.-]{1,15}://[^\s\"'`<>]+"
    r"|(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?::\d{1,5})?(?![\w.]\w)"
    r"|\[(?=[^\]]{0,64}:[^\]]{0,64}:)[0-9a-f:.%\w]{2,64}\](?::\d{1,5})?"
    r"|(?<![\w:])(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}(?![\w:])"
    r"|(?<![\w:])(?:[0-9a-f]{1,4}(?::[0-9a-f]{1,4}){0,6})?::(?:[0-9a-f]{1,4}(?::[0-9a-f]{1,4}){0,6})"
    r"(?:%\w{1,15})?(?![\w:])"
    r"|(?<![\w.-])(?:localhost|[\w-]{1,63}\.(?:local|lan|home|internal|localdomain))\b(?::\d{1,5})?",
    re.IGNORECASE,
)
"""URLs, and addresses of machines."""


def last_part(path: str) -> str:
    """Return the name of a path's file or folder."""
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]


def hide_places(text: str, shorten: Callable[[str], str] = last_part) -> str:
    """Return the text with addresses left out, and with ``shorten`` of each path in its place.

    A text of more than ``MAX_TEXT`` characters ends there, before the word that would be cut.
    """
    if len(text) > MAX_TEXT:
        text = text[: MAX_TEXT + 1].rpartition(" ")[0] or text[:MAX_TEXT]

    def without_folders(found: re.Match[str]) -> str:
        if found["home"]:
            return "(a path)"  # its last part is somebody's name
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
