"""What can go wrong with a store, cache or bus, told in one line that says what to do.

Adapters translate their libraries' errors into these; nobody else catches a library's error.
"""

from __future__ import annotations


class BackendError(Exception):
    """A store, cache or bus can't be used.  ``str()`` is one line for a person."""


class StoreError(BackendError):
    """The store could not do it now; the same call may succeed later.  Nothing was changed."""


class RecordError(BackendError):
    """The store is well, but can't take this very record: trying again will not help."""


class Unreachable(StoreError):
    """Nobody answers there: wrong address, or not up yet.  Waiting may help."""
