"""Keeps two programs from being the same node: at the server each would drive the other out.

The lock is the operating system's and goes with the process that holds it, however that ends.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 0.5
"""Seconds; ``status`` holds the lock for an instant, to see whether it is held."""


class Taken(Exception):
    """Another program is this node already; ``str()`` is a sentence."""


@contextmanager
def only_one(directory: Path) -> Iterator[None]:
    """Hold the lock of a node's directory, which exists.  Raises ``Taken``."""
    handle = os.open(_path(directory), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        give_up = time.monotonic() + PATIENCE
        while not _lock(handle):
            if time.monotonic() < give_up:
                time.sleep(0.05)
                continue
            raise Taken(
                f"a node is running with {directory} already: stop that one, or give this one "
                "a directory of its own with --data."
            )
        yield
    finally:
        os.close(handle)


def is_running(directory: Path) -> bool:
    """Whether a node runs with that directory now."""
    try:
        handle = os.open(_path(directory), os.O_RDWR)
    except OSError:
        return False
    try:
        return not _lock(handle)
    finally:
        os.close(handle)


def _path(directory: Path) -> Path:
    return directory / "running.lock"


def _lock(handle: int) -> bool:
    """Whether it was free; closing the handle frees it.  Where files can't be locked, it is."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return True
    except OSError:
        return False
    return True
