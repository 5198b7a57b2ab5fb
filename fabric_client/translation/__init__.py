"""Between the dialect that a user speaks and the one that an engine speaks.

Pure: a whole question and pieces of an answer in, the same in the other dialect out.  Nothing is
dropped in silence: what the other dialect can't say is ``TranslationError``, and the user is told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

Headers = list[tuple[str, str]]


class TranslationError(Exception):
    """The engine can't be asked this; the user gets a 400 that says so."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param
        """The field of the user's body that is at fault."""
        self.message = message


class ResponseFilter(Protocol):
    """An engine's answer on its way to the user.  Never raises, whatever the engine sends."""

    def head(self, status: int, headers: Headers) -> tuple[int, Headers]:
        """Called once, before anything else, with the engine's; returns the user's."""

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes of the body; return those that may go on now."""

    def end(self) -> bytes:
        """The engine's answer is complete; return what is still to be said."""


class TranslatedRequest(NamedTuple):
    """What an engine is asked in the user's stead, and how its answer becomes theirs."""

    path: str
    body: bytes
    response_filter: ResponseFilter | None
    """None: what the engine says is what the user gets."""


class LocalReply(NamedTuple):
    """What can be answered without asking the engine."""

    status: int
    headers: Headers
    body: bytes


RequestTranslator = Callable[[bytes], TranslatedRequest | LocalReply]
"""From the whole body of a user's request.  Raises ``TranslationError``."""


class FilterChain:
    """Two answers as one: what ``first`` makes of the engine's is what ``then`` hears."""

    def __init__(self, first: ResponseFilter, then: ResponseFilter) -> None:
        self._first = first
        self._then = then

    def head(self, status: int, headers: Headers) -> tuple[int, Headers]:
        return self._then.head(*self._first.head(status, headers))

    def feed(self, data: bytes) -> bytes:
        data = self._first.feed(data)
        return self._then.feed(data) if data else data

    def end(self) -> bytes:
        rest = self._first.end()
        return (self._then.feed(rest) if rest else b"") + self._then.end()
