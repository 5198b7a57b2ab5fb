"""Ollama's messages and tools as those of the chat API.

Tool calls differ: their arguments are an object in Ollama's API and text in OpenAI's, and Ollama's
users may name the call of a result by the tool's name, or by order alone.  Messages that are
written as for OpenAI's API are read, too (``history``).
"""

from __future__ import annotations

import msgspec

from fabric_client.translation.lenient_json import Json, get_object, get_text
from fabric_client.translation.ollama import media
from fabric_client.translation.ollama.history import read_arguments, with_plain_content
from fabric_client.translation.validation import invalid

_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})


def chat_messages(body: Json) -> list[Json]:
    given = body.get("messages")
    if given is None:
        return []
    if not isinstance(given, list):
        raise invalid("messages", "must be an array")
    open_calls: list[tuple[str, str]] = []
    return [_message(one, f"messages[{index}]", open_calls) for index, one in enumerate(given)]


def tool_fields(body: Json) -> Json:
    given = body.get("tools")
    if given is None or given == []:
        return {}
    if not isinstance(given, list) or not all(isinstance(tool, dict) for tool in given):
        raise invalid("tools", "must be an array of objects")
    return {"tools": [{"type": "function", **tool} for tool in given]}


def _message(given: object, at: str, open_calls: list[tuple[str, str]]) -> Json:
    """Translate a message; ``open_calls`` are the calls without a result so far, as (name, id)."""
    if not isinstance(given, dict):
        raise invalid(at, "must be an object")
    role = given.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise invalid(f"{at}.role", "must be 'system', 'user', 'assistant' or 'tool'")
    given = with_plain_content(given, at)
    content = media.content_parts(given.get("content", ""), given.get("images"), f"{at}.images")
    message: Json = {"role": "system" if role == "developer" else role, "content": content}
    if role == "tool":
        message["tool_call_id"] = _call_id(given, open_calls)
    if thinking := get_text(given, "thinking"):
        # vLLM reads the first name, llama-server and older vLLM the second.
        message["reasoning"] = message["reasoning_content"] = thinking
    if calls := given.get("tool_calls"):
        message["tool_calls"] = _calls(calls, f"{at}.tool_calls", open_calls)
    return message


def _calls(given: object, at: str, open_calls: list[tuple[str, str]]) -> list[Json]:
    if not isinstance(given, list):
        raise invalid(at, "must be an array")
    calls = []
    for index, call in enumerate(given):
        function = get_object(call, "function")
        name = get_text(function, "name")
        arguments = read_arguments(function.get("arguments"))
        if not name or arguments is None:
            raise invalid(
                f"{at}[{index}].function", "must have a name, and arguments that are an object"
            )
        id = get_text(call, "id") or f"call_{at[9 : at.index(']')]}_{index}"
        open_calls.append((name, id))
        function = {"name": name, "arguments": msgspec.json.encode(arguments).decode()}
        calls.append({"id": id, "type": "function", "function": function})
    return calls


def _call_id(result: Json, open_calls: list[tuple[str, str]]) -> str:
    """Return the id of the call that a result belongs to."""
    name = get_text(result, "tool_name") or get_text(result, "name")
    given = get_text(result, "tool_call_id")
    for call in open_calls:
        if given == call[1] or (not given and name in ("", call[0])):
            open_calls.remove(call)
            return call[1]
    return given or "call_unknown"
