"""The web pages that may use the public port from a browser (CORS, in the Fetch standard)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

ALL = "*"
NONE = "none"

_ORIGIN = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", re.I)
_EXPOSED = (
    b"access-control-expose-headers: x-request-id, x-client-request-id, request-id, x-fabric-route,"
    b" x-fabric-estimated, x-fabric-priority, retry-after, retry-after-ms, x-should-retry,"
    b" openai-processing-ms, openai-version,"
    b" x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests,"
    b" x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens\r\n"
)
_PREFLIGHT = (
    (b"access-control-allow-methods", b"GET, HEAD, POST, DELETE, OPTIONS"),
    (b"access-control-max-age", b"86400"),
)
_USUAL_HEADERS = (
    b"authorization, content-type, accept, openai-beta, openai-organization, openai-project,"
    b" x-api-key, api-key, anthropic-version, anthropic-beta,"
    b" anthropic-dangerous-direct-browser-access,"
    b" x-client-request-id, x-request-id, x-fabric-priority, x-fabric-timeout,"
    b" x-fabric-failover, x-fabric-region, x-fabric-reasoning, x-fabric-quant, x-fabric-digest,"
    b" x-stainless-lang, x-stainless-package-version, x-stainless-os, x-stainless-arch,"
    b" x-stainless-runtime, x-stainless-runtime-version, x-stainless-retry-count,"
    b" x-stainless-timeout, x-stainless-helper-method"
)
"""Request headers allowed to a preflight that names none; named ones are all allowed, because no
header is trusted."""
_TO_ALL = b"access-control-allow-origin: *\r\n" + _EXPOSED
_TO_NOBODY = b"vary: origin\r\n"


def parse_origins(texts: Sequence[str]) -> frozenset[bytes] | None:
    """Parse the origins of pages that are allowed; None allows all.

    Raises ``ValueError``, which says what to do.
    """
    if ALL in texts or NONE in texts:
        if len(texts) > 1:
            raise ValueError(f"'{ALL}' and '{NONE}' stand alone: leave them out, or all others")
        return None if ALL in texts else frozenset()
    for text in texts:
        if not _ORIGIN.fullmatch(text):
            raise ValueError(
                f"'{text}' is no origin: use one such as https://chat.example.org, without a path"
            )
    return frozenset(text.lower().encode() for text in texts)


class Cors:
    """The headers that tell browsers which pages may read an answer."""

    def __init__(self, origins: Sequence[str] = (ALL,)) -> None:
        """Raises ``ValueError`` for what is no origin."""
        self._origins = parse_origins(origins)

    def preflight(self, headers: Mapping[bytes, bytes]) -> list[tuple[bytes, bytes]]:
        """Return the headers that answer ``OPTIONS``, besides those of every answer."""
        origin = headers.get(b"origin")
        if origin is None or not self._allows(origin):
            return []
        wanted = headers.get(b"access-control-request-headers", _USUAL_HEADERS)
        return [*_PREFLIGHT, (b"access-control-allow-headers", wanted)]

    def headers(self, origin: bytes) -> bytes:
        """Return the header lines of an answer to a page of ``origin``."""
        if self._origins is None:
            return _TO_ALL
        if not self._allows(origin):
            return _TO_NOBODY
        return b"access-control-allow-origin: %b\r\n%b%b" % (origin, _TO_NOBODY, _EXPOSED)

    def _allows(self, origin: bytes) -> bool:
        return self._origins is None or origin.lower() in self._origins
