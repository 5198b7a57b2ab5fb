"""Errors that people can put right, and among them those of stores, caches and buses.

Adapters translate their libraries' errors into these; no other code catches a library's errors.
"""

from __future__ import annotations


class Problem(Exception):
    """Something that the user of a program can put right; ``str()`` is a sentence that says how.

    A command that raises it ends with the sentence on standard error, not as a defect.
    """


class BackendError(Problem):
    """A store, cache or bus can't be used.  ``str()`` is one line for a person."""


class StoreError(BackendError):
    """The store failed and changed nothing; the same call may succeed later."""


class RecordError(BackendError):
    """The store works, but can't hold this record: a retry will not help."""


class Unreachable(StoreError):
    """No back end answers there: the address is wrong, or it is not up yet.  Waiting may help."""


class NoStore(Unreachable):
    """No server has made its tables there: the place is wrong, or the server is not up yet."""
