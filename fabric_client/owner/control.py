"""What the owner tells a node that runs: a small file, written by commands, watched by the node.

A pause outlasts the node's restarts; a wish to drain is for the one run that it names.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import msgspec
from msgspec import Struct

from fabric_client.identity import write as write_file


class Control(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    at: float = 0.0
    """When it was said, Unix seconds: the node repeats it in its state once it has acted on it."""
    paused: bool = False
    until: float | None = None
    """Unix seconds; None is until ``fabric-client resume``."""
    drain: str = ""
    """``State.run`` of the run that is to end when its work is done."""

    @property
    def paused_until(self) -> float | None:
        """Infinite when no end was said; None when it is not paused."""
        if not self.paused:
            return None
        return math.inf if self.until is None else self.until

    def pauses(self, now: float) -> bool:
        return self.paused and (self.until is None or now < self.until)


class Unreadable(Exception):
    """The file is there and not one of ours; ``str()`` is a sentence."""


def path_in(directory: Path) -> Path:
    return directory / "control.json"


def write(directory: Path, control: Control) -> Control:
    """Only its owner may write or read it.  Raises OSError."""
    path = path_in(directory)
    write_file(path, msgspec.json.encode(control).decode(), secret=True)
    return control


def read(directory: Path) -> Control:
    """What was said last; nothing said is a ``Control()``.  Raises ``Unreadable``."""
    path = path_in(directory)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Control)
    except FileNotFoundError:
        return Control()
    except (OSError, msgspec.MsgspecError) as error:
        raise Unreadable(f"{path} can't be read ({error}): delete it.") from None


class Watched:
    """The file as a running node sees it.  ``look`` costs one ``stat`` when nothing was said."""

    def __init__(self, directory: Path) -> None:
        self.said = Control()
        self._directory = directory
        self._seen: tuple[int, int, int] | None = None

    def look(self) -> str | None:
        """Bring ``said`` up to date.  Returns what is wrong with the file, once; what was said
        before then holds."""
        seen = self._stamp()
        if seen == self._seen:
            return None
        self._seen = seen
        try:
            self.said = read(self._directory)
        except Unreadable as error:
            return str(error)
        return None

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = path_in(self._directory).stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino, status.st_size


def say(
    directory: Path,
    *,
    paused: bool | None = None,
    until: float | None = None,
    drain: str | None = None,
) -> Control:
    """Change what was said, and leave the rest.  Raises ``Unreadable`` or OSError."""
    before = read(directory)
    control = msgspec.structs.replace(before, at=max(time.time(), math.nextafter(before.at, 9e18)))
    if paused is not None:
        control = msgspec.structs.replace(control, paused=paused, until=until)
    if drain is not None:
        control = msgspec.structs.replace(control, drain=drain)
    return write(directory, control)
