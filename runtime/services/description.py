"""A service, and the plan of installing it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple


@dataclass(frozen=True, kw_only=True)
class Service:
    """A program that is to run for as long as its machine.

    It holds no secret: whoever may read a unit may read all of this.
    """

    name: str
    """Name of the program, and of the service."""
    about: str
    command: tuple[str, ...]
    """The absolute path of the program, and its arguments."""
    data_variable: str
    """Environment variable of the data directory."""
    data: Path
    """Absolute."""
    system: bool
    """It starts with the machine; otherwise it is the user's own."""
    user: str | None = None
    """User of a system service; None: one that systemd makes up."""
    config: tuple[str, str] | None = None
    """Environment variable and path of a settings file elsewhere."""
    reload: tuple[str, ...] = ()
    """The command that reloads its settings."""
    final_codes: tuple[int, ...] = ()
    """Exit codes after which a restart would change nothing."""
    final_flag: str = ""
    """Flag with which it ends with 0 instead, for managers that know no codes."""
    low_ports: bool = False
    """It listens on a port below 1024."""
    one_file: bool = False
    """The program is one file, which unpacks itself into a cache."""
    devices: bool = False
    """It reads devices, such as GPUs."""
    stop_seconds: int = 90
    """Longest time that it needs to stop."""

    @property
    def environment(self) -> dict[str, str]:
        given = {self.data_variable: str(self.data)}
        return given if self.config is None else {**given, self.config[0]: self.config[1]}


class Step(NamedTuple):
    """A command of the service manager."""

    words: tuple[str, ...]
    may_fail: bool = False
    """Such as to stop what may not run."""
    advice: str = ""
    """What to do by hand if it fails."""


@dataclass(frozen=True)
class Plan:
    """The steps of installing or removing a service, in their order."""

    before: Sequence[Step] = ()
    files: Mapping[Path, str] = field(default_factory=dict)
    """Files that are written; in a plan to uninstall, their texts are empty: they are removed."""
    after: Sequence[Step] = ()


class ServiceProblem(Exception):
    """The service can't be installed; ``str()`` says why and what to do."""
