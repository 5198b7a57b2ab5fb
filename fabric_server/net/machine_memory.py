"""The memory of this machine or container, and how much of it this process uses; Linux only."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_STATM = Path("/proc/self/statm")
SHARE_OF_MACHINE = 0.75
"""Of a whole machine, which runs other programs, too; a container's limit is all for the server."""
DEFAULT_MEMORY = 2 * 2**30
"""Stands for the memory of a machine that does not tell it."""


def memory_limit(cgroup: Path = _CGROUP) -> int:
    """Return the bytes that the server may use: its container's limit, or a share of the memory of
    the machine, whichever is less."""
    share = int(_physical() * SHARE_OF_MACHINE)
    limits = [limit for path in _limit_files(cgroup) if (limit := _read_limit(path))]
    return min([share, *limits])


def resident() -> int | None:
    """Return the bytes of memory that this process has; None where the system does not tell."""
    try:
        return int(_STATM.read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def _physical() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return int(DEFAULT_MEMORY / SHARE_OF_MACHINE)


def _limit_files(cgroup: Path) -> list[Path]:
    """Return the files with limits: of version 2, this process's group and those around it; of
    version 1, as containers see it."""
    files = [cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes"]
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return files
    for line in lines:
        if line.startswith("0::/"):
            group = cgroup / line[4:]
            while cgroup in group.parents:
                files.append(group / "memory.max")
                group = group.parent
    return files


def _read_limit(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max" is no limit
        return None
