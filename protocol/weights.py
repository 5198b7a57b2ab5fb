"""The digest and the labels by which weights of one model's name are told apart."""

from __future__ import annotations

import re

DIGEST = r"^([0-9a-f]{12,})?\Z"
"""Lower-case hex without ``sha256:``; empty when it is not known."""
LABEL = r"^([A-Za-z0-9][A-Za-z0-9._+-]*)?\Z"
"""Neither spaces nor slashes: no path of a node's disk is a label."""
MIN_DIGEST, MAX_DIGEST = 12, 64
"""Characters of a SHA-256 in hex, or of its beginning, as Ollama's program shows it."""
MAX_LABEL = 64
"""Characters."""

_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{12,64})", re.IGNORECASE | re.ASCII)
_LABEL = re.compile(LABEL)


def parse_digest(text: str) -> str:
    """Return a digest in the form of ``DIGEST``, or empty text when it is none."""
    if len(text) > len("sha256:") + MAX_DIGEST:
        return ""
    found = _DIGEST.fullmatch(text)
    return "" if found is None else found[1].lower()


def is_label(text: str) -> bool:
    return 0 < len(text) <= MAX_LABEL and _LABEL.search(text) is not None
