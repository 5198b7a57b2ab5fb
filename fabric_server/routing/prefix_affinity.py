"""Who has seen the beginning of a prompt before, and so has it in its cache."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING
from zlib import crc32

if TYPE_CHECKING:
    from fabric_server.nodes.registry import Engine

MAX_PREFIXES = 2**18
"""Beginnings remembered, of some 20,000 conversations; about 40 MiB."""
LOOKED_AT = 16 * 1024
"""Bytes of a prompt that tell one conversation from another."""
BOUNDS = tuple(round(64 * 2 ** (step / 2)) for step in range(17))
"""Where beginnings end, in bytes: each half as long again as the one before it, so that a prompt
has few of them, and one that continues another shares at least half of it, whatever its length."""
_PAIRS = tuple(pairwise((0, *BOUNDS)))
CHAT_KEYS = (b'"messages"', b'"prompt"')

Place = tuple[str, str]
"""Node id and engine name: of a node that comes back, the engine still has its cache."""


def prefix_hashes(
    body: bytes, salt: bytes = b"", keys: tuple[bytes, ...] = CHAT_KEYS
) -> tuple[int, ...]:
    """Of the prompt's beginnings that end at ``BOUNDS``, the shortest first.

    Takes any bytes.  Prompts share hashes only under the same ``salt``: nobody learns from where
    they are sent what others ask.  A collision costs one request its cache, nothing else.  The
    first of ``keys`` that is found begins the prompt.
    """
    for key in keys:  # a quote inside a string is escaped: found with both, it is no text
        start = body.find(key, 0, LOOKED_AT)
        if start >= 0:
            break
    else:
        return ()
    view = memoryview(body)[start : start + LOOKED_AT]
    size = len(view)
    value = crc32(salt)
    hashes = []
    for begin, end in _PAIRS:
        if end > size:
            break
        value = crc32(view[begin:end], value)
        hashes.append(value)
    return tuple(hashes)


class PrefixAffinity:
    """Remembers who was last given each beginning, and forgets what was not used for longest."""

    def __init__(self, most: int = MAX_PREFIXES) -> None:
        self._most = most
        self._places: dict[int, Place] = {}

    def __len__(self) -> int:
        return len(self._places)

    def find(self, prefix: tuple[int, ...]) -> tuple[Place, float] | None:
        """Who has seen the longest beginning, and how large a share of the prompt that is."""
        places = self._places
        for index in range(len(prefix) - 1, -1, -1):
            place = places.get(prefix[index])
            if place is not None:
                return place, BOUNDS[index] / BOUNDS[len(prefix) - 1]
        return None

    def remember(self, prefix: tuple[int, ...], engine: Engine) -> None:
        """This prompt was given to this engine."""
        if not prefix:
            return
        place = engine.node.id, engine.name
        places = self._places
        for value in prefix:
            places.pop(value, None)  # so that it becomes the last in the dictionary's order
            places[value] = place
        while len(places) > self._most:
            del places[next(iter(places))]
