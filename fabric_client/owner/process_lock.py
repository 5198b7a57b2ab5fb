"""Keeps two programs from being the same node: at the server each would supersede the other.

The lock is the operating system's and ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.errors import Problem

LOCK_SECONDS = 0.5
"""Time to wait for the lock: ``status`` holds it for an instant to see whether it is held."""


class AlreadyRunning(Problem):
    """Another program is this node; ``str()`` is a sentence."""


@contextmanager
def hold_lock(directory: Path) -> Iterator[None]:
    """Hold the lock of a node's directory, which exists.  Raises ``AlreadyRunning``."""
    handle = os.open(_path(directory), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        give_up = time.monotonic() + LOCK_SECONDS
        while not _lock(handle):
            if time.monotonic() < give_up:
                time.sleep(0.05)
                continue
            raise AlreadyRunning(
                f"a node is already running in {directory}: stop it, or set --data to another "
                "directory for this one."
            )
        yield
    finally:
        os.close(handle)


def is_running(directory: Path) -> bool:
    """Return whether a node runs with that directory now."""
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
    """Lock the file until the handle is closed; False if another process has.

    True where the system can't lock files.
    """
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
