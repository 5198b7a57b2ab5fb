"""Errors of stores, caches and buses; the text of each is one line that says what to do.

Adapters translate their libraries' errors into these; no other code catches a library's errors.
"""

from __future__ import annotations


class BackendError(Exception):
    """A store, cache or bus can't be used.  ``str()`` is one line for a person."""


class StoreError(BackendError):
    """The store failed and changed nothing; the same call may succeed later."""


class RecordError(BackendError):
    """The store works, but can't hold this record: a retry will not help."""


class Unreachable(StoreError):
    """No back end answers there: the address is wrong, or it is not up yet.  Waiting may help."""


class NoStore(Unreachable):
    """No server has made its tables there: the place is wrong, or the server is not up yet."""
