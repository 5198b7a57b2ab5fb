"""Tools of a Responses request, offered to the engine as functions of the chat API.

Codex sends more kinds than functions.  A ``custom`` tool takes plain text and becomes a function
with one argument.  A ``namespace`` is a group of tools; its name becomes a prefix of theirs.  A
``tool_search`` is a function of the client that finds more tools, which are then offered too.
Calls in the answer are translated back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from fabric_client.translation.chunks import UNREADABLE
from fabric_client.translation.lenient_json import Json
from fabric_client.translation.validation import (
    invalid,
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
_CALL_TYPES = {
    "function": "function_call",
    "custom": "custom_tool_call",
    "tool_search": "tool_search_call",
}
MAX_TOOLS = 4096
"""Tools of a request; the APIs of these dialects take fewer."""
_MODES = ("auto", "none", "required")
_CUSTOM_PARAMETERS = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
}


class OfferedTool(NamedTuple):
    """A tool under the name that the user gave it."""

    name: str
    namespace: str | None = None
    call_type: str = "function_call"
    """Type of the items that call it."""


class OfferedTools(dict[str, OfferedTool]):
    """The tools of a request by their names at the engine: what its answer needs of them."""

    def find(self, engine_name: str) -> OfferedTool:
        """Return the tool that an engine calls; models also call some that were not offered."""
        return self.get(engine_name) or OfferedTool(engine_name)


class ToolSet:
    """The tools of a request, and the user's choice among them."""

    def __init__(self, tools: Any, choice: Any, input: Any) -> None:
        """Take the request's fields ``tools``, ``tool_choice`` and ``input``."""
        self.functions: list[Json] = []
        """The tools as the engine gets them."""
        self.offered = OfferedTools()
        for at, tool in require_objects([] if tools is None else tools, "tools"):
            self._add(tool, at)
        for at, tool in _tools_in_input(input):
            self._add(tool, at, repeatable=True)
        self.choice = self._translate_choice(choice)
        """``tool_choice`` as the engine gets it; None if there is none."""

    def _add(
        self,
        tool: Json,
        at: str,
        namespace: str | None = None,
        group_description: str = "",
        repeatable: bool = False,
    ) -> None:
        """Add a tool; a ``repeatable`` one is skipped if it is there already."""
        kind = tool.get("type")
        if kind == "namespace" and namespace is None:
            self._add_namespace(tool, at, repeatable)
            return
        is_search = kind == "tool_search" and tool.get("execution") == "client"
        if kind not in ("function", "custom") and not is_search:
            family = "web_search" if str(kind).startswith("web_search") else str(kind)
            remedy = _REMEDIES.get(family, "")
            raise invalid(
                f"{at}.type", f"is '{kind}', a tool that does not run here; leave it out{remedy}"
            )
        name = "tool_search" if is_search else require_text(tool.get("name"), f"{at}.name")
        full_name = engine_name(name, namespace)
        if full_name in self.offered:
            if repeatable:
                return
            raise invalid(f"{at}.name", f"is '{full_name}', which another tool is named")
        if len(self.offered) >= MAX_TOOLS:
            raise invalid("tools", f"has more than {MAX_TOOLS} tools")
        self.offered[full_name] = OfferedTool(name, namespace, _CALL_TYPES[str(kind)])
        description = require_text(tool.get("description") or "", f"{at}.description")
        function: Json = {"name": full_name}
        if kind == "custom":
            function["parameters"] = _CUSTOM_PARAMETERS
            description += _grammar(tool.get("format"), f"{at}.format")
        else:
            function["parameters"] = tool.get("parameters") or {"type": "object", "properties": {}}
            if tool.get("strict") is not None:
                function["strict"] = tool["strict"]
        if group_description or description:
            function["description"] = "\n\n".join(filter(None, (group_description, description)))
        self.functions.append({"type": "function", "function": function})

    def _add_namespace(self, group: Json, at: str, repeatable: bool) -> None:
        """Add a group's tools; its description goes in front of that of the first."""
        name = require_text(group.get("name"), f"{at}.name")
        description = require_text(group.get("description") or "", f"{at}.description")
        for tool_at, tool in require_objects(group.get("tools"), f"{at}.tools"):
            self._add(tool, tool_at, name, description, repeatable)
            description = ""

    def _translate_choice(self, choice: Any) -> Any:
        if choice is None:
            return None
        if isinstance(choice, dict):
            return self._translate_tool_choice(choice)
        mode = require_choice(choice, "tool_choice", _MODES)
        if mode == "required" and not self.functions:
            raise invalid("tool_choice", "requires 'tools'")
        return mode

    def _translate_tool_choice(self, choice: Json) -> Any:
        kind = choice.get("type")
        if kind == "allowed_tools":
            tools = require_list(choice.get("tools"), "tool_choice.tools")
            allowed = {
                self._chosen_name(require_object(tool, "tool_choice.tools")) for tool in tools
            }
            self.functions = [one for one in self.functions if one["function"]["name"] in allowed]
            return require_choice(choice.get("mode"), "tool_choice.mode", ("auto", "required"))
        if kind in ("function", "custom"):
            return {"type": "function", "function": {"name": self._chosen_name(choice)}}
        raise invalid("tool_choice", f"names '{kind}', a tool that does not run here")

    def _chosen_name(self, choice: Json) -> str:
        name = require_text(choice.get("name"), "tool_choice.name")
        namespace = choice.get("namespace")
        if namespace is not None:
            namespace = require_text(namespace, "tool_choice.namespace")
        full_name = engine_name(name, namespace)
        if full_name not in self.offered:
            raise invalid("tool_choice", f"names '{name}', which is not in 'tools'")
        return full_name


def _tools_in_input(input: Any) -> Iterator[tuple[str, Json]]:
    """Yield the tools that items of the conversation bring with them."""
    for at, item in require_objects(input if isinstance(input, list) else [], "input"):
        if item.get("type") in ("tool_search_output", "additional_tools"):
            yield from require_objects(item.get("tools"), f"{at}.tools")


def engine_name(name: str, namespace: str | None) -> str:
    """Return the name under which the engine gets a tool."""
    if namespace is None:
        return name
    return f"{namespace}{name}" if namespace.endswith("__") else f"{namespace}__{name}"


def describe_tools(tools: Any) -> list[Any]:
    """Return the request's field ``tools`` as answers repeat it: functions have all their fields.

    A function whose ``strict`` is not given is not one: it is then up to the engine.
    """
    absent = {"description": None, "parameters": None, "strict": False}
    return [absent | tool if tool.get("type") == "function" else tool for tool in tools or []]


def custom_arguments(text: str) -> str:
    """Return a custom tool's input as arguments of its function."""
    return msgspec.json.encode({"input": text}).decode()


def custom_input(arguments: str) -> str:
    """Return the input in such arguments; if there is none, all of them, for the tool to reject."""
    try:
        found = msgspec.json.decode(arguments)
    except UNREADABLE:
        return arguments
    text = found.get("input") if isinstance(found, dict) else None
    return text if isinstance(text, str) else arguments


def search_arguments(arguments: str) -> Json:
    """Return a search's arguments, JSON in the chat API, as the object that they are here."""
    try:
        found = msgspec.json.decode(arguments or "{}")
    except UNREADABLE:
        found = None
    return found if isinstance(found, dict) else {"query": arguments}


def _grammar(format: Any, at: str) -> str:
    """Return a tool's grammar as text for the model: engines can't constrain one argument."""
    described = require_object(format or {"type": "text"}, at)
    if require_choice(described.get("type"), f"{at}.type", ("text", "grammar")) == "text":
        return ""
    syntax = require_text(described.get("syntax"), f"{at}.syntax")
    definition = require_text(described.get("definition"), f"{at}.definition")
    return f"\n\n'input' must fit this {syntax} grammar:\n{definition}"
