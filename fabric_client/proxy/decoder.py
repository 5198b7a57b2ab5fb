"""Decoding of answers that an engine has compressed, although it was asked not to."""

from __future__ import annotations

import zlib

MAX_PIECE = 16 * 2**20
"""Bytes that one piece of a compressed answer may become; more is taken for an attack."""
_WINDOW_BITS = {
    "gzip": zlib.MAX_WBITS | 16,
    "x-gzip": zlib.MAX_WBITS | 16,
    "deflate": zlib.MAX_WBITS,
}


class Decoder:
    """Decodes one answer, piece by piece."""

    def __init__(self, encoding: str) -> None:
        """Raises ``ValueError`` for an encoding that is not known."""
        bits = _WINDOW_BITS.get(encoding.strip().lower())
        if bits is None:
            raise ValueError(f"the engine's answer is encoded ({encoding}), which it must not be")
        self._inflate = zlib.decompressobj(bits)
        self._raw = bits == zlib.MAX_WBITS
        """Some send ``deflate`` without the header that it should have."""

    def feed(self, data: bytes) -> bytes:
        """Return what the next piece says.  Raises ``ValueError``."""
        try:
            decoded = self._decompress(data)
        except zlib.error as error:
            raise ValueError(f"the engine's answer can't be decoded: {error}") from None
        if self._inflate.unconsumed_tail:
            raise ValueError("the engine's answer expands to too much")
        self._raw = False
        return decoded

    def end(self) -> None:
        """Raises ``ValueError`` if the answer is not complete."""
        if not self._inflate.eof:
            raise ValueError("the engine's answer ends in the middle of what it encodes")

    def _decompress(self, data: bytes) -> bytes:
        try:
            return self._inflate.decompress(data, MAX_PIECE)
        except zlib.error:
            if not self._raw:
                raise
            self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
            return self._inflate.decompress(data, MAX_PIECE)
