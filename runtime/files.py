"""Replaces small files as a whole, for the user whose directory they are in."""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, text: str, *, secret: bool = False) -> None:
    """Replace a file in one step: a reader sees the old text or the new.

    A ``secret`` one is at no time readable by other users.  What root writes belongs to the owner
    of the directory, as whom the program runs.  Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    mode = 0o600 if secret else 0o644
    try:
        descriptor = os.open(temporary, flags, mode)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            if hasattr(os, "geteuid") and os.geteuid() == 0:
                owner = path.parent.stat()
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
