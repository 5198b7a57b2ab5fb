"""Putting what was restored in its place, and taking that back when it fails halfway."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fabric_server.backup.data_files import WORKING
from fabric_server.backup.problem import BackupProblem

Own = Callable[[int], None]
"""Gives an open file to the server's user, by its descriptor."""


class Moves:
    """The renames of one restore, in order, so that they can be taken back."""

    def __init__(self) -> None:
        self._done: list[tuple[Path, Path]] = []
        self._made: list[Path] = []

    def make(self, directory: Path) -> Path:
        """Make a directory, for its owner alone.  Raises OSError."""
        directory.mkdir(mode=0o700)
        self._made.append(directory)
        return directory

    def move(self, path: Path, to: Path) -> Path:
        """Rename a file or directory; return where it is now.  Raises OSError."""
        path.rename(to)
        self._done.append((path, to))
        return to

    def take_back(self) -> list[str]:
        """Undo all of it, the last first; return what could not be undone, as sentences' parts."""
        left = []
        for path, to in reversed(self._done):
            try:
                if os.path.lexists(path):
                    raise FileExistsError(0, "something else is there by now")
                to.rename(path)
            except OSError as error:
                left.append(f"{path} was moved to {to} ({error.strerror})")
        for directory in reversed(self._made):
            try:
                directory.rmdir()
            except OSError as error:
                left.append(f"{directory} was made ({error.strerror})")
        return left


@contextmanager
def moving() -> Iterator[Moves]:
    """Take moves back if the block fails.

    Raises ``BackupProblem``, with a list, if that can't be done for all of them.
    """
    moves = Moves()
    try:
        yield moves
    except BaseException as error:
        if left := moves.take_back():
            reason = why(error) if isinstance(error, OSError) else str(error) or "it was stopped"
            raise BackupProblem(
                f"it can't be put in place ({reason}), and not all that was moved could be moved "
                f"back: {'; '.join(left)}. Move these back by hand before you try again."
            ) from error
        raise


def why(error: OSError) -> str:
    """Return the reason of an error with the file that it is about."""
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename is not None else reason


@contextmanager
def working(place: Path, own: Own | None = None) -> Iterator[Path]:
    """Make a directory in ``place`` for as long as the block lasts, and ``place`` if missing.

    Directories above it that are missing are made, too, and removed if nothing was put there.
    """
    made: list[Path] = []
    try:
        for path in reversed([one for one in (place, *place.parents) if not one.exists()]):
            path.mkdir(mode=0o700)
            made.append(path)
            if own is not None:
                own_path(path, own)
        # What can't be removed here is removed by a later backup; the restore is complete.
        with tempfile.TemporaryDirectory(
            prefix=WORKING, dir=place, ignore_cleanup_errors=True
        ) as directory:
            yield Path(directory)
    finally:
        for path in reversed(made):
            if not any(path.iterdir()):
                path.rmdir()


def own_path(path: Path, own: Own) -> None:
    """Give a file or directory to the server's user, but nothing to which a link leads.

    Raises OSError.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
    if path.is_dir():
        flags |= os.O_DIRECTORY
    descriptor = os.open(path, flags)
    try:
        own(descriptor)
    finally:
        os.close(descriptor)


def sync(directory: Path) -> None:
    """Wait until the names in a directory are on the disk.  Raises OSError."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def owner_of(data: Path) -> Own:
    """Return what gives an open file to the owner of the data directory, if root restores."""
    owner = data.stat()

    def own(descriptor: int) -> None:
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            os.fchown(descriptor, owner.st_uid, owner.st_gid)

    return own


def below(path: Path, data: Path) -> Path | None:
    """Return the path of a store within the data directory; None if it is elsewhere.

    It is within it as written, or by where links lead: in both cases it would be moved away
    together with what is there.
    """
    real = Path(os.path.realpath(path.parent), path.name)
    written = Path(os.path.abspath(path))
    for one, root in (
        (written, os.path.abspath(data)),
        (real, os.path.realpath(data)),
    ):
        if one.is_relative_to(root):
            return one.relative_to(root)
    return None
