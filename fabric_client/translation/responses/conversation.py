"""The conversation of a Responses request, as messages of the chat API."""

from __future__ import annotations

from typing import Any

import msgspec

from fabric_client.translation.conversation_builder import ConversationBuilder
from fabric_client.translation.lenient_json import Json
from fabric_client.translation.responses.tools import custom_arguments, engine_name
from fabric_client.translation.validation import (
    invalid,
    require_choice,
    require_object,
    require_objects,
    require_text,
)

_ROLES = ("user", "assistant", "system", "developer")
_TEXT_PARTS = frozenset({"input_text", "output_text", "text", "reasoning_text", "summary_text"})


def chat_messages(input: Any, instructions: Any) -> list[Json]:
    """Translate the request's fields ``input`` and ``instructions``."""
    conversation = ConversationBuilder()
    if instructions:
        conversation.add_system(require_text(instructions, "instructions"))
    if isinstance(input, str):
        input = [{"role": "user", "content": input}]
    for at, item in require_objects(input, "input"):
        _add_item(conversation, item, at)
    messages = conversation.build()
    if not messages:
        raise invalid("input", "must not be empty")
    return messages


def _add_item(conversation: ConversationBuilder, item: Json, at: str) -> None:
    kind = item.get("type") or "message"
    if kind == "message":
        _add_message(conversation, item, at)
    elif kind == "reasoning":
        # ``encrypted_content`` is ignored: nothing here encrypts.
        reasoning = _texts(item.get("content"), at) or _texts(item.get("summary"), at)
        if reasoning:
            conversation.add_reasoning(reasoning)
    elif kind == "tool_search_call":
        given = require_object(item.get("arguments"), f"{at}.arguments")
        call_id = require_text(item.get("call_id"), f"{at}.call_id")
        conversation.add_tool_call(call_id, "tool_search", msgspec.json.encode(given).decode())
    elif kind == "tool_search_output":
        tools = require_objects(item.get("tools"), at)
        found = [require_text(tool.get("name"), where) for where, tool in tools]
        text = f"These can be called now: {', '.join(found)}" if found else "Nothing was found."
        call_id = require_text(item.get("call_id"), f"{at}.call_id")
        conversation.add_tool_result(call_id, [{"type": "text", "text": text}])
    elif kind == "additional_tools":
        pass  # ``ToolSet`` offers them with the others
    elif kind in ("function_call", "custom_tool_call"):
        _add_call(conversation, item, at)
    elif kind in ("function_call_output", "custom_tool_call_output"):
        parts = _parts(item.get("output"), f"{at}.output")
        conversation.add_tool_result(require_text(item.get("call_id"), f"{at}.call_id"), parts)
    elif kind == "item_reference":
        raise invalid(at, "is an 'item_reference', but nothing is stored; send the item itself")
    else:
        raise invalid(f"{at}.type", f"is '{kind}', which this engine does not take; leave it out")


def _add_call(conversation: ConversationBuilder, item: Json, at: str) -> None:
    namespace = item.get("namespace")
    namespace = None if namespace is None else require_text(namespace, f"{at}.namespace")
    name = engine_name(require_text(item.get("name"), f"{at}.name"), namespace)
    if item["type"] == "function_call":
        arguments = require_text(item.get("arguments"), f"{at}.arguments")
    else:
        arguments = custom_arguments(require_text(item.get("input"), f"{at}.input"))
    call_id = require_text(item.get("call_id"), f"{at}.call_id")
    conversation.add_tool_call(call_id, name, arguments)


def _add_message(conversation: ConversationBuilder, message: Json, at: str) -> None:
    role = require_choice(message.get("role"), f"{at}.role", _ROLES)
    parts = _parts(message.get("content"), f"{at}.content")
    if role == "user":
        conversation.add_user(parts)
        return
    if any(part["type"] != "text" for part in parts):
        raise invalid(f"{at}.content", f"must be text: the role is '{role}'")
    if role == "assistant":
        conversation.add_assistant("".join(part["text"] for part in parts), separator="\n\n")
    else:
        conversation.add_system("\n".join(part["text"] for part in parts))


def _texts(content: Any, at: str) -> str:
    if content is None:
        return ""
    return "\n".join(part["text"] for part in _parts(content, at) if part["type"] == "text")


def _parts(content: Any, at: str) -> list[Json]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [_part(part, where) for where, part in require_objects(content, at)]


def _part(part: Json, at: str) -> Json:
    kind = part.get("type")
    if kind in _TEXT_PARTS:
        return {"type": "text", "text": require_text(part.get("text"), f"{at}.text")}
    if kind == "refusal":
        return {"type": "text", "text": require_text(part.get("refusal"), f"{at}.refusal")}
    if kind == "input_image" and part.get("image_url"):
        image = {"url": require_text(part["image_url"], f"{at}.image_url")}
        if part.get("detail") in ("low", "high"):
            image["detail"] = part["detail"]
        return {"type": "image_url", "image_url": image}
    if kind == "input_audio":
        audio = require_object(part.get("input_audio"), f"{at}.input_audio")
        return {"type": "input_audio", "input_audio": audio}
    if kind in ("input_image", "input_file"):
        raise invalid(
            at, "refers to a file, which is not supported; send text, or an image by 'image_url'"
        )
    raise invalid(
        f"{at}.type", f"is '{kind}', which this engine does not take; send text or images"
    )
