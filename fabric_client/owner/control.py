"""The owner's commands to a running node: a small file that commands write and the node watches.

A pause outlasts the node's restarts; a drain is for the one run that it names.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import msgspec
from msgspec import Struct

from runtime.files import write as write_file


class Control(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """``control.json``."""

    at: float = 0.0
    """Unix seconds at which it was written: the node repeats this number in its state once it has
    acted on the command."""
    paused: bool = False
    until: float | None = None
    """Unix seconds; None is until ``fabric-client resume``."""
    drain: str = ""
    """``State.run`` of the run that is to end when its work is done."""
    reload: float = 0.0
    """Changes whenever the node is to read its settings again: Unix seconds."""

    @property
    def paused_until(self) -> float | None:
        """Unix seconds; infinite for a pause without an end, None if there is no pause."""
        if not self.paused:
            return None
        return math.inf if self.until is None else self.until

    def pauses(self, now: float) -> bool:
        return self.paused and (self.until is None or now < self.until)


class Unreadable(Exception):
    """The file is not one of ours; ``str()`` is a sentence."""


def path_in(directory: Path) -> Path:
    return directory / "control.json"


def write(directory: Path, control: Control) -> Control:
    """Write the file; only its owner may read it.  Raises OSError."""
    path = path_in(directory)
    write_file(path, msgspec.json.encode(control).decode(), secret=True)
    return control


def read(directory: Path) -> Control:
    """Return the last command, ``Control()`` if there was none.  Raises ``Unreadable``."""
    path = path_in(directory)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Control)
    except FileNotFoundError:
        return Control()
    except (OSError, ValueError, RecursionError) as error:
        raise Unreadable(f"{path} can't be read ({error}): delete it.") from None


class ControlFile:
    """The file as a running node sees it.  ``poll`` costs one ``stat`` when nothing changed."""

    def __init__(self, directory: Path) -> None:
        self.current = Control()
        self._directory = directory
        self._seen: tuple[int, int, int] | None = None

    def poll(self) -> str | None:
        """Bring ``current`` up to date.

        Returns what is wrong with the file, once; the command before then still holds.
        """
        seen = self._stamp()
        if seen == self._seen:
            return None
        self._seen = seen
        try:
            self.current = read(self._directory)
        except Unreadable as error:
            return str(error)
        return None

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = path_in(self._directory).stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size


def update(
    directory: Path,
    *,
    paused: bool | None = None,
    until: float | None = None,
    drain: str | None = None,
    reload: bool = False,
) -> Control:
    """Give a command, and leave the others as they are.  Raises ``Unreadable`` or OSError."""
    before = read(directory)
    control = msgspec.structs.replace(before, at=max(time.time(), math.nextafter(before.at, 9e18)))
    if paused is not None:
        control = msgspec.structs.replace(control, paused=paused, until=until)
    if drain is not None:
        control = msgspec.structs.replace(control, drain=drain)
    if reload:
        control = msgspec.structs.replace(control, reload=control.at)
    return write(directory, control)
