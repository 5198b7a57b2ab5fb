"""The key that an engine wants, in a file that only its owner can read."""

from __future__ import annotations

import logging
import os
from pathlib import Path

MAX_BYTES = 4096
"""The most that a key file may have."""

log = logging.getLogger("fabric.engines")


class EngineKeyError(Exception):
    """The file has no key that can be sent; ``str()`` says why, and what to do, without a path."""


class EngineKey:
    """A key file; read again whenever it has changed, so that a new key needs no restart."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.value = ""
        """The key; empty until ``refresh`` has read it."""
        self._seen: tuple[int, int, int] | None = None

    def __repr__(self) -> str:
        return f"<EngineKey {self.file}>"

    @property
    def authorization(self) -> str:
        """The value of the ``Authorization`` header; every kind of engine takes this form."""
        return f"Bearer {self.value}" if self.value else ""

    def refresh(self) -> None:
        """Read the file if it has changed.  Raises ``EngineKeyError``."""
        try:
            status = self.file.stat()
            seen = status.st_mtime_ns, status.st_ino, status.st_size
            if seen == self._seen:
                return
            with self.file.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            self._seen, self.value = None, ""
            reason = error.strerror or type(error).__name__
            raise EngineKeyError(
                f"The engine's key file can't be read ({reason}): see engine_key_file."
            ) from None
        key = data.strip()
        if not key or len(data) > MAX_BYTES or not all(33 <= byte <= 126 for byte in key):
            self._seen, self.value = None, ""
            raise EngineKeyError(
                "The engine's key file must have one line, the key: printable characters without "
                "spaces."
            )
        self._seen, self.value = seen, key.decode("ascii")
        if os.name == "posix" and status.st_mode & 0o077:
            log.warning(
                "others on this machine can read an engine's key: chmod 600 its file",
                extra={"file": str(self.file)},
            )
