"""Whole tool calls, from the pieces that engines send."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fabric_client.translation.chunks import ToolCall
from fabric_client.translation.lenient_json import Json, decode_object
from fabric_client.translation.tool_calls import Call, CallPart, ToolCallSequencer, or_empty

MAX_ARGUMENTS = 8 * 2**20
"""Characters in the arguments of one call."""


class ToolCallAssembler:
    """Assembles calls: Ollama's API sends each whole, with its arguments as an object.

    ``feed`` and ``end`` return the calls that are complete, and the text of those that can't be
    completed: a call that ``num_predict`` cut off reaches the user as text.
    """

    def __init__(self) -> None:
        self._sequencer = ToolCallSequencer()
        self._arguments: list[str] = []
        self._size = 0
        self._count = 0

    def feed(self, pieces: Sequence[ToolCall]) -> tuple[list[Json], str]:
        """Raises ``MalformedToolCall``."""
        return self._assemble(self._sequencer.feed(pieces))

    def end(self) -> tuple[list[Json], str]:
        """End all calls: the engine sends no more pieces."""
        return self._assemble(self._sequencer.end())

    def _assemble(self, parts: Iterable[CallPart]) -> tuple[list[Json], str]:
        calls: list[Json] = []
        cut_off = ""
        for part in parts:
            self._size += len(part.text)
            if self._size <= MAX_ARGUMENTS:
                self._arguments.append(part.text)
            if part.ends:
                call, text = self._finish(part.call)
                calls += call
                cut_off += text
        return calls, cut_off

    def _finish(self, call: Call) -> tuple[list[Json], str]:
        text, size = "".join(self._arguments), self._size
        self._arguments, self._size = [], 0
        arguments = decode_object(or_empty(text).encode("utf-8", "replace"))
        if arguments is None or size > MAX_ARGUMENTS:
            return [], text
        function = {"index": self._count, "name": call.name, "arguments": arguments}
        self._count += 1
        return [{**({"id": call.id} if call.id else {}), "function": function}], ""
