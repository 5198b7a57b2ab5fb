"""The files of a data directory that belong into a backup, and how they get back there."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from fabric_server.backup.archive import DATA, Part, is_safe
from fabric_server.backup.problem import BackupProblem

WORKING, KEPT = ".backup-", "before-restore-"
"""Beginnings of the names of directories that backups and restores make in ``data``."""
OF_A_START = ("ready.json", "server.sock")
"""Files that each start makes anew."""
BESIDE_SQLITE = ("", "-wal", "-shm", "-journal")
SMALL = 4 * 2**20
"""Bytes up to which a file is read at once, so that no change can come between."""


class Found(NamedTuple):
    """The content of a data directory."""

    files: list[tuple[str, Path]]
    """Names of parts, and where their bytes are."""
    left_out: list[str]
    """Files and directories that are not in the backup although nobody can make them anew."""


def find(data: Path, store: Path | None, settings_file: Path | None) -> Found:
    """Return the files of a data directory; of the store, in ``store``, none.

    The settings file that the server has, if it is another than ``fabric.toml``, takes the place of
    that.  Links that lead out of the directory are left out: whoever may write there could have any
    file of the machine backed up otherwise.  Raises ``BackupProblem``.
    """
    found, root = Found([], []), Path(_real(data))
    skipped = set() if store is None else {_real(f"{store}{end}") for end in BESIDE_SQLITE}
    for path in _walk(data, found.left_out):
        relative = path.relative_to(data).as_posix()
        if relative == "fabric.toml" and settings_file is not None:
            continue
        real = Path(_real(path))
        if str(real) in skipped or relative in OF_A_START:
            continue
        if not real.is_relative_to(root):
            found.left_out.append(str(path))
            continue
        if not real.is_file():
            continue
        if is_safe(name := f"{DATA}/{relative}"):
            found.files.append((name, real))
        else:
            found.left_out.append(str(path))
    if settings_file is not None:
        found.files.append((f"{DATA}/fabric.toml", Path(_real(settings_file))))
    # A cursor of the spool before the records that it counts: an older one only repeats some.
    found.files.sort(key=lambda one: (one[1].name != "cursor", one[0]))
    return found


def _walk(data: Path, left_out: list[str]) -> Iterator[Path]:
    def failed(error: OSError) -> None:
        if isinstance(error, FileNotFoundError):  # such as a spool that was moved on meanwhile
            return
        raise _unreadable(error.filename, error)

    for directory, folders, files in os.walk(data, onerror=failed):
        here = Path(directory)
        if here == data:
            folders[:] = [one for one in folders if not one.startswith((WORKING, KEPT))]
            files = [one for one in files if not _is_half_written(one)]
        for folder in folders:
            if (here / folder).is_symlink():  # it might lead round in circles
                left_out.append(str(here / folder))
        yield from (here / file for file in files)


def _is_half_written(name: str) -> bool:
    """Return whether ``runtime.files`` is writing this file, or was when its process ended."""
    return name.startswith(".") and name.rpartition(".")[2].isdecimal()


def open_file(path: Path) -> tuple[BinaryIO, int] | None:
    """Open a file and return its size; None if it is gone, or is no file any more.

    A link that has taken its place is refused, with ``BackupProblem``.
    """
    try:
        # Not to wait for a writer, if it is a pipe by now.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        file = open(path, "rb", opener=lambda name, _: os.open(name, flags))  # noqa: SIM115
        about = os.fstat(file.fileno())
    except FileNotFoundError:  # such as a segment of the spool, which is in the store by now
        return None
    except OSError as error:
        raise _unreadable(path, error) from None
    if not stat.S_ISREG(about.st_mode):
        file.close()
        return None
    return file, about.st_size


def _real(path: str | Path) -> str:
    return os.path.realpath(path)


def _unreadable(path: object, error: OSError) -> BackupProblem:
    return BackupProblem(
        f"{path} can't be read ({error.strerror or error}): run as the server's user, or as root."
    )


# ── putting back ──────────────────────────────────────────────────────────────────────────────


def put(part: Part, directory: Path, own: Callable[[int], None]) -> None:
    """Write a part of the data directory below ``directory``, for the server's user alone.

    ``own`` gives the file, by its descriptor, to that user.  Raises OSError and ``BackupProblem``.
    """
    write_part(part, directory.joinpath(*part.name.split("/")[1:]), own)


def write_part(part: Part, path: Path, own: Callable[[int], None]) -> None:
    """Write a part to a new file.  Raises OSError and ``BackupProblem``."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        own(descriptor)
        for piece in part.pieces():
            file.write(piece)
        file.flush()
        os.fsync(descriptor)
