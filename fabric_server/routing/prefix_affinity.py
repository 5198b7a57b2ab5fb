"""Prefix-cache affinity: which engine was given the beginning of a prompt before."""

from __future__ import annotations

from itertools import pairwise
from zlib import crc32

from fabric_server.nodes.node import Engine

MAX_PREFIXES = 2**18
"""Prefixes remembered, of some 20,000 conversations; about 40 MiB."""
MAX_HASHED = 16 * 1024
"""Bytes of a prompt that are hashed: enough to tell one conversation from another."""
BOUNDS = tuple(round(64 * 2 ** (step / 2)) for step in range(17))
"""Lengths of the prefixes in bytes, growing by the square root of 2: a prompt has few of them, and
one that continues another shares at least half of it, whatever its length."""
_PAIRS = tuple(pairwise((0, *BOUNDS)))
CHAT_KEYS = (b'"messages"', b'"prompt"')

Place = tuple[str, str]
"""Node id and engine name: a node that reconnects still has its cache."""


def prefix_hashes(
    body: bytes, salt: bytes = b"", keys: tuple[bytes, ...] = CHAT_KEYS
) -> tuple[int, ...]:
    """Return the hashes of the prompt's prefixes that end at ``BOUNDS``, the shortest first.

    Takes any bytes; the first of ``keys`` that is found begins the prompt.  Prompts share hashes
    only under the same ``salt``, so that routing does not show one account what others ask.  A
    collision costs one request its cache, nothing else.
    """
    for key in keys:  # quotes inside a string are escaped, so this finds no text
        start = body.find(key, 0, MAX_HASHED)
        if start >= 0:
            break
    else:
        return ()
    text = body[start : start + MAX_HASHED]
    size = len(text)
    value = crc32(salt)
    hashes = []
    for begin, end in _PAIRS:
        if end > size:
            break
        value = crc32(text[begin:end], value)
        hashes.append(value)
    return tuple(hashes)


class PrefixAffinity:
    """Remembers which engine was last given each prefix; evicts the least recently used."""

    def __init__(self, most: int = MAX_PREFIXES) -> None:
        self._most = most
        self._places: dict[int, Place] = {}

    def __len__(self) -> int:
        return len(self._places)

    def find(self, prefix: tuple[int, ...]) -> tuple[Place, float] | None:
        """Return who was given the longest prefix, and that prefix's share of the prompt."""
        places = self._places
        for index in range(len(prefix) - 1, -1, -1):
            place = places.get(prefix[index])
            if place is not None:
                return place, BOUNDS[index] / BOUNDS[len(prefix) - 1]
        return None

    def remember(self, prefix: tuple[int, ...], engine: Engine) -> None:
        """Record that this prompt was given to this engine."""
        if not prefix:
            return
        place = engine.node.id, engine.name
        places = self._places
        for value in prefix:
            places.pop(value, None)  # so that it becomes the last in the dictionary's order
            places[value] = place
        while len(places) > self._most:
            del places[next(iter(places))]
