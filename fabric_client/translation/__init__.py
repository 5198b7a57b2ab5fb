"""Translation between the dialect of an API user and the dialect of an engine.

Pure: a whole request and pieces of a response in, the same in the other dialect out.  Nothing is
dropped silently: what the other dialect can't express raises ``TranslationError``.  A package for
each dialect (``messages``, ``responses``, ``ollama``), what they share in this one, and ``paths``,
which lists what can be served.  Imports only ``fabric_client.sse`` and ``protocol``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from msgspec import Struct

Headers = list[tuple[str, str]]


class TranslationError(Exception):
    """A request that can't be translated; the user gets status 400 with ``message``."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param
        """The field of the user's body that is at fault."""
        self.message = message


class ResponseFilter(Protocol):
    """Changes an engine's response on its way to the user.  Never raises, whatever is sent."""

    @property
    def decided(self) -> tuple[int, Headers] | None:
        """The user's status and headers, where ``head`` has returned None, once they are known: at
        the latest after ``end``."""

    def head(self, status: int, headers: Headers) -> tuple[int, Headers] | None:
        """Return the user's status and headers for the engine's; None if the body decides.

        Called once, before ``feed``; names of headers are in lower case.
        """

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes of the body; return those that can be sent on now."""

    def end(self) -> bytes:
        """Return what is left to send; the engine's response is complete."""


class TranslatedRequest(Struct, frozen=True):  # made in a third of a NamedTuple's time
    """A request to the engine, and the filter of its response."""

    path: str
    body: bytes
    response_filter: ResponseFilter | None
    """None if the response passes as it is."""


class LocalReply(NamedTuple):
    """A response that the node makes without asking the engine (Envoy: local reply)."""

    status: int
    headers: Headers
    body: bytes


RequestTranslator = Callable[[bytes], TranslatedRequest | LocalReply]
"""Translates the whole body of a user's request.  Raises ``TranslationError``."""


class FilterChain:
    """Two response filters as one: the output of ``first`` is the input of ``then``."""

    def __init__(self, first: ResponseFilter, then: ResponseFilter) -> None:
        self._first = first
        self._then = then

    @property
    def decided(self) -> tuple[int, Headers] | None:
        return self._then.decided

    def head(self, status: int, headers: Headers) -> tuple[int, Headers] | None:
        """``first`` knows its head at once."""
        return self._then.head(*(self._first.head(status, headers) or (status, headers)))

    def feed(self, data: bytes) -> bytes:
        data = self._first.feed(data)
        return self._then.feed(data) if data else data

    def end(self) -> bytes:
        rest = self._first.end()
        return (self._then.feed(rest) if rest else b"") + self._then.end()
