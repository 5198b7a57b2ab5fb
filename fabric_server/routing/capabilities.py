"""Capabilities that a body seems to require, guessed from its text: hints, no reasons to refuse."""

from __future__ import annotations

from fabric_server.dialects.endpoints import Endpoint

MAX_SEARCHED = 256 * 1024
"""Bytes of a body that are searched."""
_BYTES_PER_TOKEN = 4
_NONE = frozenset[str]()
_TOOLS = frozenset({"tools"})
_VISION = frozenset({"vision"})


def guess_capabilities(endpoint: Endpoint, body: bytes) -> frozenset[str]:
    """Return the capabilities that ``body``, or its beginning, seems to require.

    Keys are found by their plain quotes, which text inside a JSON string does not have.
    """
    if endpoint.capabilities or not endpoint.prompt_keys:
        return endpoint.capabilities
    capabilities = _NONE
    if body.find(b'"tools"', 0, MAX_SEARCHED) >= 0:
        capabilities |= _TOOLS
    for marker in endpoint.image_markers:
        if body.find(marker, 0, MAX_SEARCHED) >= 0:
            return capabilities | _VISION
    return capabilities


def estimate_tokens(endpoint: Endpoint, size: int | None, capabilities: frozenset[str]) -> int:
    """Estimate the prompt's tokens from the body's size; 0 where that is impossible: images."""
    if size is None or "vision" in capabilities:
        return 0
    if not (endpoint.prompt_keys or endpoint.capabilities):
        return 0
    return size // _BYTES_PER_TOKEN
