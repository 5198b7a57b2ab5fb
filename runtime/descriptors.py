"""The limit of open files of this process: every connection is one."""

from __future__ import annotations

import contextlib

MAX_FILES = 1_048_576
"""The most that is asked for where there is no limit; also Linux's usual ``fs.nr_open``."""
_LESS = (65_536, 10_240)
"""What systems grant that tell of a higher limit than they grant."""
WITHOUT_LIMIT = 8_192
"""The figure to plan with where there is no such limit: on Windows."""


def open_files_limit() -> int:
    """Return the limit of open files that binds this process now."""
    try:
        import resource
    except ImportError:
        return WITHOUT_LIMIT
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_FILES if soft == resource.RLIM_INFINITY else min(soft, MAX_FILES)


def allow_many_files() -> None:
    """Raise the soft limit of open files as far as the hard one allows.

    The usual soft limit of 1,024 is for programs that use select.
    """
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    for limit in (most, *_LESS):
        if soft == resource.RLIM_INFINITY or soft >= limit:
            break
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            break
