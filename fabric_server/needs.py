"""What a body asks of an engine, guessed from its text: hints, never reasons to refuse."""

from __future__ import annotations

LOOKED_AT = 256 * 1024
"""Bytes of a body that are searched."""
_BYTES_A_TOKEN = 4
_VISION = (b'"image_url"', b'"input_image"')
_NOTHING = frozenset[str]()
_EMBEDDINGS = frozenset({"embeddings"})
_TOOLS = frozenset({"tools"})
_SIGHT = frozenset({"vision"})


def read_needs(path: str, body: bytes) -> frozenset[str]:
    """``body`` may be only the beginning of one.  Keys are found by their plain quotes, which text
    inside a string does not have."""
    if path == "/v1/embeddings":
        return _EMBEDDINGS
    needs = _NOTHING
    if body.find(b'"tools"', 0, LOOKED_AT) >= 0:
        needs |= _TOOLS
    if any(body.find(key, 0, LOOKED_AT) >= 0 for key in _VISION):
        needs |= _SIGHT
    return needs


def estimate_tokens(size: int | None, needs: frozenset[str]) -> int:
    """Of a body of so many bytes; 0 when that can't be told, as of pictures."""
    return 0 if size is None or "vision" in needs else size // _BYTES_A_TOKEN
