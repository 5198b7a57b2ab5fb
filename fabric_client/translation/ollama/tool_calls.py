"""Tool calls, out of the pieces that engines send them in."""

from __future__ import annotations

from fabric_client.translation.chunks import ToolCall
from fabric_client.translation.lenient_json import Json, said

MAX_CALLS = 128
MAX_ARGUMENTS = 8 * 2**20
"""Characters of one call's."""


class ToolCallAssembler:
    """Ollama's users get each call whole: its arguments are an object to them.

    ``feed`` and ``end`` return the calls that are complete now, and the text of those that can't
    be: a call that was cut off by ``num_predict`` is told as words, rather than not at all.
    """

    def __init__(self) -> None:
        self._first: ToolCall | None = None
        """Of the pieces of the call that is coming."""
        self._name = ""
        self._arguments: list[str] = []
        self._size = 0
        self._count = 0

    def feed(self, pieces: list[ToolCall]) -> tuple[list[Json], str]:
        """Raises ``MalformedToolCall``."""
        calls: list[Json] = []
        torn = ""
        for piece in pieces:
            if piece.is_empty:
                continue
            if piece.begins_after(self._first):
                done, broken = self.end()
                calls += done
                torn += broken
                self._first, self._name = piece, piece.name
            self._size += len(piece.arguments)
            if self._size <= MAX_ARGUMENTS:
                self._arguments.append(piece.arguments)
        return calls, torn

    def end(self) -> tuple[list[Json], str]:
        """The engine says no more of the call that was coming."""
        if self._first is None:
            return [], ""
        told, name, id, size = "".join(self._arguments), self._name, self._first.id, self._size
        self._first, self._name, self._arguments, self._size = None, "", [], 0
        arguments = said(told.encode("utf-8", "replace")) if told.strip() else {}
        if arguments is None or self._count >= MAX_CALLS or size > MAX_ARGUMENTS:
            return [], told
        function = {"index": self._count, "name": name, "arguments": arguments}
        self._count += 1
        return [{**({"id": id} if id else {}), "function": function}], ""
