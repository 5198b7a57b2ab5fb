"""The tools that a question of the Responses API offers, as functions of the chat API.

Codex sends more kinds than functions.  A ``custom`` tool takes plain text, so it becomes a function
with one argument; a ``namespace`` is a group of tools, whose names become longer; a ``tool_search``
is a function of the client's that finds more tools, which are then offered too.  All are turned
back in the answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from fabric_client.translation.validation import (
    Json,
    refused,
    require_choice,
    require_list,
    require_object,
    require_objects,
    require_text,
)

_REMEDIES = {
    "web_search": ' (Codex: web_search = "disabled")',
    "image_generation": " (Codex: features.image_generation = false)",
}
_CALLS = {
    "function": "function_call",
    "custom": "custom_tool_call",
    "tool_search": "tool_search_call",
}
_MODES = ("auto", "none", "required")
_INPUT = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}


class OfferedTool(NamedTuple):
    """As the user knows it."""

    name: str
    namespace: str | None = None
    call: str = "function_call"
    """The type of item that calls it."""


class ToolSet:
    def __init__(self, tools: Any, choice: Any, conversation: Any) -> None:
        """``tools``, ``tool_choice`` and ``input`` of the question."""
        self.offered: list[Json] = []
        """For the engine."""
        self._known: dict[str, OfferedTool] = {}
        """By the name that the engine is told."""
        for at, tool in require_objects([] if tools is None else tools, "tools"):
            self._add(tool, at)
        for at, tool in _found(conversation):
            self._add(tool, at, found=True)
        self.choice = self._choice(choice)
        """For the engine; None when there is nothing to be said."""

    def find(self, name: str) -> OfferedTool:
        """The tool that an engine calls; models call some that nobody offered."""
        return self._known.get(name) or OfferedTool(name)

    def _add(
        self,
        tool: Json,
        at: str,
        namespace: str | None = None,
        about: str = "",
        found: bool = False,
    ) -> None:
        """``found`` tools may have been found before."""
        kind = tool.get("type")
        if kind == "namespace" and namespace is None:
            self._add_namespace(tool, at, found)
            return
        searches = kind == "tool_search" and tool.get("execution") == "client"
        if kind not in ("function", "custom") and not searches:
            name = "web_search" if str(kind).startswith("web_search") else str(kind)
            reason = f"the tool '{kind}' can't be run here; leave it out{_REMEDIES.get(name, '')}"
            raise refused(f"{at}.type", reason)
        name = "tool_search" if searches else require_text(tool.get("name"), f"{at}.name")
        told = engine_name(name, namespace)
        if told in self._known:
            if found:
                return
            raise refused(f"{at}.name", f"there are two tools of the name '{told}'")
        self._known[told] = OfferedTool(name, namespace, _CALLS[str(kind)])
        described = require_text(tool.get("description") or "", f"{at}.description")
        function: Json = {"name": told}
        if kind == "custom":
            function["parameters"] = _INPUT
            described += _grammar(tool.get("format"), f"{at}.format")
        else:
            function["parameters"] = tool.get("parameters") or {"type": "object", "properties": {}}
            if tool.get("strict") is not None:
                function["strict"] = tool["strict"]
        if about or described:
            function["description"] = "\n\n".join(filter(None, (about, described)))
        self.offered.append({"type": "function", "function": function})

    def _add_namespace(self, group: Json, at: str, found: bool) -> None:
        """What is said of all its tools is said with the first."""
        name = require_text(group.get("name"), f"{at}.name")
        about = require_text(group.get("description") or "", f"{at}.description")
        for place, tool in require_objects(group.get("tools"), f"{at}.tools"):
            self._add(tool, place, name, about, found)
            about = ""

    def _choice(self, choice: Any) -> Any:
        if choice is None:
            return None
        if isinstance(choice, dict):
            return self._choice_of_tool(choice)
        mode = require_choice(choice, "tool_choice", _MODES)
        if mode == "required" and not self.offered:
            raise refused("tool_choice", "there are no tools to choose from")
        return mode

    def _choice_of_tool(self, choice: Json) -> Any:
        kind = choice.get("type")
        if kind == "allowed_tools":
            tools = require_list(choice.get("tools"), "tool_choice.tools")
            allowed = {self._chosen(require_object(tool, "tool_choice.tools")) for tool in tools}
            self.offered = [tool for tool in self.offered if tool["function"]["name"] in allowed]
            return require_choice(choice.get("mode"), "tool_choice.mode", ("auto", "required"))
        if kind in ("function", "custom"):
            return {"type": "function", "function": {"name": self._chosen(choice)}}
        raise refused("tool_choice", f"the tool '{kind}' can't be run here")

    def _chosen(self, choice: Json) -> str:
        name = require_text(choice.get("name"), "tool_choice.name")
        space = choice.get("namespace")
        told = engine_name(
            name, None if space is None else require_text(space, "tool_choice.namespace")
        )
        if told not in self._known:
            raise refused("tool_choice", f"there is no tool '{name}' among those offered")
        return told


def _found(conversation: Any) -> Iterator[tuple[str, Json]]:
    """Tools that the conversation brings with it."""
    for at, item in require_objects(
        conversation if isinstance(conversation, list) else [], "input"
    ):
        if item.get("type") in ("tool_search_output", "additional_tools"):
            yield from require_objects(item.get("tools"), f"{at}.tools")


def engine_name(name: str, namespace: str | None) -> str:
    if namespace is None:
        return name
    return f"{namespace}{name}" if namespace.endswith("__") else f"{namespace}__{name}"


def custom_arguments(text: str) -> str:
    """Arguments of the function that stands for a custom tool."""
    return msgspec.json.encode({"input": text}).decode()


def custom_input(arguments: str) -> str:
    """The text in them; whatever else the model has written is for the tool to complain about."""
    try:
        found = msgspec.json.decode(arguments)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return arguments
    text = found.get("input") if isinstance(found, dict) else None
    return text if isinstance(text, str) else arguments


def search_arguments(arguments: str) -> Json:
    """An object here, and text in the chat API."""
    try:
        found = msgspec.json.decode(arguments or "{}")
    except (msgspec.MsgspecError, ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"query": arguments}


def _grammar(described: Any, at: str) -> str:
    """Engines can't hold a single argument to a grammar, but the model can read it."""
    wanted = require_object(described or {"type": "text"}, at)
    if require_choice(wanted.get("type"), f"{at}.type", ("text", "grammar")) == "text":
        return ""
    syntax = require_text(wanted.get("syntax"), f"{at}.syntax")
    definition = require_text(wanted.get("definition"), f"{at}.definition")
    return f"\n\n'input' must fit this {syntax} grammar:\n{definition}"
