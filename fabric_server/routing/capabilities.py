"""What a body asks of an engine, guessed from its text: hints, never reasons to refuse."""

from __future__ import annotations

from fabric_server.dialects.endpoints import Endpoint

LOOKED_AT = 256 * 1024
"""Bytes of a body that are searched."""
_BYTES_A_TOKEN = 4
_NOTHING = frozenset[str]()
_TOOLS = frozenset({"tools"})
_SIGHT = frozenset({"vision"})


def read_needs(endpoint: Endpoint, body: bytes) -> frozenset[str]:
    """``body`` may be only the beginning of one.  Keys are found by their plain quotes, which text
    inside a string does not have."""
    if endpoint.needs or not endpoint.prompts:
        return endpoint.needs
    needs = _NOTHING
    if body.find(b'"tools"', 0, LOOKED_AT) >= 0:
        needs |= _TOOLS
    for mark in endpoint.sights:
        if body.find(mark, 0, LOOKED_AT) >= 0:
            return needs | _SIGHT
    return needs


def estimate_tokens(endpoint: Endpoint, size: int | None, needs: frozenset[str]) -> int:
    """Of a body of so many bytes; 0 when that can't be told, as of pictures."""
    if size is None or "vision" in needs or not (endpoint.prompts or endpoint.needs):
        return 0
    return size // _BYTES_A_TOKEN
