"""The cursor file: the position up to which a log is committed.

    0                 8        12
    +-----------------+--------+
    |    position     | CRC-32 |      all before this position is committed (or was dropped)
    +-----------------+--------+

Numbers are little-endian and unsigned; the CRC is of the position's bytes.
"""

from __future__ import annotations

import os
from pathlib import Path
from struct import Struct
from zlib import crc32

_POSITION = Struct("<Q")
_CURSOR = Struct("<QI")

# Windows would translate line ends.
_BINARY = getattr(os, "O_BINARY", 0)


class Cursor:
    """A position in a file of its own.

    A kill can't tear so few bytes: the kernel copies them in one go.  Should they be torn by
    something else, the CRC shows it.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file.  Raises ``OSError``."""
        self.path = path
        self._fd = os.open(path, os.O_CREAT | os.O_RDWR | _BINARY, 0o600)
        self._saved: int | None = None

    def load(self) -> int | None:
        """Return the position, None for a new file.

        Raises ``OSError``; ``ValueError`` when the file is damaged.
        """
        data = os.pread(self._fd, _CURSOR.size + 1, 0)
        if not data:
            return None
        if len(data) != _CURSOR.size:
            raise ValueError
        position, crc = _CURSOR.unpack(data)
        if crc != _crc_of(position):
            raise ValueError
        self._saved = position
        return int(position)

    def save(self, position: int) -> None:
        """Write the position.  Raises ``OSError``; the file may then lag, which is harmless."""
        if position == self._saved:
            return
        os.pwrite(self._fd, _CURSOR.pack(position, _crc_of(position)), 0)
        if self._saved is None:
            os.ftruncate(self._fd, _CURSOR.size)
        self._saved = position

    def close(self) -> None:
        os.close(self._fd)


def _crc_of(position: int) -> int:
    return crc32(_POSITION.pack(position))
