"""Output items of a response: reasoning, messages and tool calls."""

from __future__ import annotations

import msgspec

from fabric_client.translation.lenient_json import Json
from fabric_client.translation.responses.tools import OfferedTool, custom_input, search_arguments

CALL_PREFIXES = {"function_call": "fc", "custom_tool_call": "ctc", "tool_search_call": "tsc"}
"""Types of items that are calls, and the prefixes of their ids."""


class OutputItem:
    """An item that is still growing: reasoning, a message, a refusal or a call."""

    __slots__ = ("call_id", "encoded_id", "id", "kind", "pieces", "tool")

    def __init__(self, kind: str, id: str) -> None:
        self.kind = kind
        self.id = id
        self.encoded_id = msgspec.json.encode(id)
        self.pieces: list[str] = []
        self.call_id: str | None = None
        self.tool = OfferedTool("")

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def part(self, text: str) -> Json:
        """Return the content part of reasoning, a message or a refusal."""
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": text}
        if self.kind == "refusal":
            return {"type": "refusal", "refusal": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}

    def describe_begun(self) -> Json:
        return self._describe("in_progress", "", [])

    def describe_done(self, status: str) -> Json:
        text = self.text
        return self._describe(status, text, [self.part(text)])

    def _describe(self, status: str, text: str, content: list[Json]) -> Json:
        item: Json = {"id": self.id, "type": self.kind, "status": status}
        if self.kind == "reasoning":
            return item | {"summary": [], "content": content}
        if self.kind in ("message", "refusal"):
            return item | {"type": "message", "role": "assistant", "content": content}
        item |= {"call_id": self.call_id or self.id, "name": self.tool.name}
        if self.kind == "tool_search_call":
            del item["name"]
            return item | {"execution": "client", "arguments": search_arguments(text)}
        if self.tool.namespace is not None:
            item["namespace"] = self.tool.namespace
        if self.kind == "function_call":
            return item | {"arguments": text}
        del item["status"]  # calls of custom tools have none
        return item | {"input": custom_input(text) if text else ""}
