"""Whole tool calls, from the pieces that engines send."""

from __future__ import annotations

from fabric_client.translation.chunks import ToolCall
from fabric_client.translation.lenient_json import Json, decode_object

MAX_CALLS = 128
MAX_ARGUMENTS = 8 * 2**20
"""Characters in the arguments of one call."""


class ToolCallAssembler:
    """Assembles calls: Ollama's API sends each whole, with its arguments as an object.

    ``feed`` and ``end`` return the calls that are complete, and the text of those that can't be
    completed: a call that ``num_predict`` cut off reaches the user as text.
    """

    def __init__(self) -> None:
        self._first: ToolCall | None = None
        """The first piece of the current call."""
        self._name = ""
        self._arguments: list[str] = []
        self._size = 0
        self._count = 0

    def feed(self, pieces: list[ToolCall]) -> tuple[list[Json], str]:
        """Raises ``MalformedToolCall``."""
        calls: list[Json] = []
        text = ""
        for piece in pieces:
            if piece.is_empty:
                continue
            if piece.begins_after(self._first):
                complete, cut_off = self.end()
                calls += complete
                text += cut_off
                self._first, self._name = piece, piece.name
            self._size += len(piece.arguments)
            if self._size <= MAX_ARGUMENTS:
                self._arguments.append(piece.arguments)
        return calls, text

    def end(self) -> tuple[list[Json], str]:
        """End the current call: the engine sends no more pieces of it."""
        if self._first is None:
            return [], ""
        text, name, id, size = "".join(self._arguments), self._name, self._first.id, self._size
        self._first, self._name, self._arguments, self._size = None, "", [], 0
        arguments = decode_object(text.encode("utf-8", "replace")) if text.strip() else {}
        if arguments is None or self._count >= MAX_CALLS or size > MAX_ARGUMENTS:
            return [], text
        function = {"index": self._count, "name": name, "arguments": arguments}
        self._count += 1
        return [{**({"id": id} if id else {}), "function": function}], ""
