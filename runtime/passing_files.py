"""Files for libraries that read a secret from a path only, and which nobody finds afterwards."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def passing_file(text: str, *, in_memory: bool = True) -> Iterator[str]:
    """Yield the path of a file with the text, which this process may read meanwhile.

    On Linux the file is in memory only, and gone with its process.  Elsewhere, or where that is
    not allowed, it is one in the system's directory for temporary files, which other users can't
    read: if the process is killed meanwhile it stays there, but in no backup of the server's data.
    Raises ``OSError``.
    """
    data = text.encode()
    descriptor = _open_in_memory() if in_memory else None
    if descriptor is None:
        with tempfile.NamedTemporaryFile(prefix="fabric-") as file:
            file.write(data)
            file.flush()
            yield file.name
        return
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        yield _path_of(descriptor)


def _open_in_memory() -> int | None:
    """Return the descriptor of a file in memory; None where there is none that has a path."""
    if sys.platform != "linux":
        return None
    try:
        descriptor = os.memfd_create("fabric")
    except OSError:  # an old kernel, or a sandbox that forbids it
        return None
    if os.access(_path_of(descriptor), os.R_OK):
        return descriptor
    os.close(descriptor)  # /proc is not mounted
    return None


def _path_of(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"
