"""Tool calls of an answer, put together from the pieces that engines send.

Pieces belong together by index and id where they have them.  Some engines give all calls index 0,
some give neither; some send pieces of several calls in turns, and some repeat the name each time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from fabric_client.translation.chunks import MalformedToolCall, ToolCall

MAX_CALLS = 128
"""Calls of one answer; more count as malformed."""
_MARK = re.compile(r'["{}\[\]]|\\.?', re.DOTALL)
"""What tells whether JSON is complete; an escaped character is one mark, and none of these.  An
escape that is cut in two is taken for whole: its other half is hardly ever a quote."""


class Call:
    """One call, as far as it is known."""

    __slots__ = ("_depth", "_in_string", "_pieces", "_sent", "ended", "id", "index", "name")

    def __init__(self, index: int | None, id: str | None, name: str) -> None:
        self.index = index
        self.id = id
        self.name = name
        self.ended = False
        self._pieces: list[str] = []
        self._sent = 0
        """Pieces that were passed on."""
        self._depth = 0
        self._in_string = False

    @property
    def has_arguments(self) -> bool:
        return bool(self._pieces)

    @property
    def complete(self) -> bool:
        """Return whether the arguments are all there: their brackets are closed, or none came."""
        return self._depth == 0 and not self._in_string

    def add(self, text: str) -> None:
        """Add to the arguments; each character is looked at once."""
        if not text:
            return
        self._pieces.append(text)
        for mark in _MARK.findall(text):
            if mark == '"':
                self._in_string = not self._in_string
            elif not self._in_string and mark in "{[":
                self._depth += 1
            elif not self._in_string and mark in "}]":
                self._depth -= 1

    def take(self) -> str:
        """Return what was added and not passed on yet."""
        text = "".join(self._pieces[self._sent :])
        self._sent = len(self._pieces)
        return text


class CallPart(NamedTuple):
    """The next part of a call, in an order in which one call ends before the next begins."""

    call: Call
    begins: bool
    text: str
    """The next of its arguments."""
    ends: bool


class ToolCallSequencer:
    """Puts pieces in order: the calls one after the other, each from beginning to end.

    The first call is passed on as it comes.  Another one waits until that is complete.
    """

    def __init__(self) -> None:
        self._calls: list[Call] = []
        self._live = 0
        """Index of the call that is passed on now, or will be next."""
        self._begun = False

    @property
    def is_open(self) -> bool:
        """Return whether there is a call that has not ended."""
        return self._live < len(self._calls)

    def feed(self, pieces: Sequence[ToolCall]) -> list[CallPart]:
        """Take the pieces of one chunk.  Raises ``MalformedToolCall``."""
        several, known = len(pieces) > 1, len(self._calls)
        for position, piece in enumerate(pieces):
            if piece.is_empty and not piece.id:
                continue
            index = position if several and piece.index is None else piece.index
            call = self._find(piece, index)
            if call is None:
                if piece.is_empty:
                    continue  # an id without a name says nothing
                if len(self._calls) >= MAX_CALLS:
                    raise MalformedToolCall
                call = Call(index, piece.id, piece.name)
                self._calls.append(call)
            if call.ended and piece.arguments.strip():
                raise MalformedToolCall
            call.add(piece.arguments)
        return self._parts(grown=len(self._calls) > known)

    def end(self) -> list[CallPart]:
        """End all calls: no more pieces come."""
        parts = self._parts(grown=False)
        while self._live < len(self._calls):
            call = self._calls[self._live]
            parts.append(CallPart(call, not self._begun, call.take(), True))
            self._next(call)
        return parts

    def _parts(self, *, grown: bool) -> list[CallPart]:
        parts: list[CallPart] = []
        while self._live < len(self._calls):
            call = self._calls[self._live]
            last = self._live + 1 == len(self._calls)
            ends = grown and not last and call.complete
            text = call.take()
            if text or ends:  # not before there are arguments: the name may come in pieces
                parts.append(CallPart(call, not self._begun, text, ends))
                self._begun = True
            if not ends:
                break
            self._next(call)
        return parts

    def _next(self, call: Call) -> None:
        call.ended, self._begun = True, False
        self._live += 1

    def _find(self, piece: ToolCall, index: int | None) -> Call | None:
        """Return the call that a piece continues, None if it begins one."""
        name = piece.function.name if piece.function is not None else None
        if piece.id:
            for call in reversed(self._calls):
                if call.id == piece.id:
                    return call
        last = self._last(index)
        if last is None:
            return None
        if piece.id:
            # Another id is another call; one that comes later belongs to the call without.
            same = not name or (name == last.name and not last.has_arguments)
            if last.id or not same:
                return None
            last.id = piece.id
            return last
        return self._continued(last, name, index, piece)

    def _continued(
        self, call: Call, name: str | None, index: int | None, piece: ToolCall
    ) -> Call | None:
        """Return ``call``, the last one of this index, if a piece without an id continues it."""
        if not name:
            return call
        if call.has_arguments and call.complete:
            return None
        if name != call.name:
            if index is None or call.has_arguments or piece.arguments:
                return None
            call.name += name  # a name in pieces
        return call

    def _last(self, index: int | None) -> Call | None:
        for call in reversed(self._calls):
            if index is None or call.index == index or call.index is None:
                return call
        return None


def or_empty(arguments: str) -> str:
    """Return the arguments; those that are missing are an empty object."""
    return "{}" if arguments.strip() in ("", "null") else arguments
