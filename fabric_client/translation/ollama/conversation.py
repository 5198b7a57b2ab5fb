"""Ollama's messages and tools as OpenAI's.

The difference is in tool calls: arguments are an object there and text here, and Ollama's users may
say by a tool's name, or by order alone, which call a result belongs to.
"""

from __future__ import annotations

import msgspec

from fabric_client.translation import TranslationError
from fabric_client.translation.lenient_json import Json, inner, text
from fabric_client.translation.ollama import media

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})


def messages(body: Json) -> list[Json]:
    given = body.get("messages")
    if given is None:
        return []
    if not isinstance(given, list):
        raise TranslationError("messages", "messages must be a list")
    open_calls: list[tuple[str, str]] = []
    return [_message(one, f"messages[{index}]", open_calls) for index, one in enumerate(given)]


def tools(body: Json) -> Json:
    given = body.get("tools")
    if given is None or given == []:
        return {}
    if not isinstance(given, list) or not all(isinstance(tool, dict) for tool in given):
        raise TranslationError("tools", "tools must be a list of objects")
    return {"tools": [{"type": "function", **tool} for tool in given]}


def _message(given: object, where: str, open_calls: list[tuple[str, str]]) -> Json:
    """``open_calls`` are the calls so far that have no result, as (name, id)."""
    if not isinstance(given, dict):
        raise TranslationError(where, f"{where} must be an object")
    role = given.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise TranslationError(
            f"{where}.role", f"{where}.role must be 'system', 'user', 'assistant' or 'tool'"
        )
    words = given.get("content")
    if words is not None and not isinstance(words, str):
        raise TranslationError(f"{where}.content", f"{where}.content must be a string")
    content = media.parts(words or "", given.get("images"), f"{where}.images")
    message: Json = {"role": "system" if role == "developer" else role, "content": content}
    if role == "tool":
        message["tool_call_id"] = _answered(given, open_calls)
    if thoughts := text(given, "thinking"):
        # vLLM reads the first name, llama-server and older vLLM the second.
        message["reasoning"] = message["reasoning_content"] = thoughts
    if calls := given.get("tool_calls"):
        message["tool_calls"] = _calls(calls, f"{where}.tool_calls", open_calls)
    return message


def _calls(given: object, where: str, open_calls: list[tuple[str, str]]) -> list[Json]:
    if not isinstance(given, list):
        raise TranslationError(where, f"{where} must be a list")
    calls = []
    for index, call in enumerate(given):
        function = inner(call, "function")
        name = text(function, "name")
        arguments = function.get("arguments")
        if not name or not isinstance(arguments, dict | None):
            raise TranslationError(
                f"{where}[{index}]",
                f"{where}[{index}].function must have a name, and arguments that are an object",
            )
        id = text(call, "id") or f"call_{where[9 : where.index(']')]}_{index}"
        open_calls.append((name, id))
        function = {"name": name, "arguments": msgspec.json.encode(arguments or {}).decode()}
        calls.append({"id": id, "type": "function", "function": function})
    return calls


def _answered(given: Json, open_calls: list[tuple[str, str]]) -> str:
    """The call that this result is of."""
    name = text(given, "tool_name") or text(given, "name")
    told = text(given, "tool_call_id")
    for call in open_calls:
        if told == call[1] or (not told and name in ("", call[0])):
            open_calls.remove(call)
            return call[1]
    return told or "call_unknown"
