"""An item of a response's output, while it grows."""

from __future__ import annotations

import msgspec

from fabric_client.translation.chunks import ToolCall
from fabric_client.translation.responses.tools import OfferedTool, custom_input, search_arguments
from fabric_client.translation.validation import Json

CALLS = {"function_call": "fc", "custom_tool_call": "ctc", "tool_search_call": "tsc"}
"""Items that are calls, and what their ids begin with."""


class OutputItem:
    """A thought, a message or a call."""

    __slots__ = ("call", "id", "kind", "pieces", "told_id", "tool")

    def __init__(self, kind: str, id: str) -> None:
        self.kind = kind
        self.id = id
        self.told_id = msgspec.json.encode(id)
        self.pieces: list[str] = []
        self.call = ToolCall()
        self.tool = OfferedTool("")

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def part(self, text: str) -> Json:
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def begun(self) -> Json:
        return self._described("in_progress", "", [])

    def done(self, status: str) -> Json:
        text = self.text
        return self._described(status, text, [self.part(text)])

    def _described(self, status: str, text: str, content: list[Json]) -> Json:
        item: Json = {"id": self.id, "type": self.kind, "status": status}
        if self.kind == "reasoning":
            return item | {"summary": [], "content": content}
        if self.kind == "message":
            return item | {"role": "assistant", "content": content}
        item |= {"call_id": self.call.id or self.id, "name": self.tool.name}
        if self.kind == "tool_search_call":
            del item["name"]
            return item | {"execution": "client", "arguments": search_arguments(text)}
        if self.tool.namespace is not None:
            item["namespace"] = self.tool.namespace
        if self.kind == "function_call":
            return item | {"arguments": text}
        del item["status"]  # calls of custom tools have none
        return item | {"input": custom_input(text) if text else ""}
