"""The conversation in a question of the Responses API, as messages of the chat API."""

from __future__ import annotations

from typing import Any

import msgspec

from fabric_client.translation.conversation_builder import ConversationBuilder
from fabric_client.translation.responses.tools import custom_arguments, engine_name
from fabric_client.translation.validation import (
    Json,
    refused,
    require_choice,
    require_object,
    require_objects,
    require_text,
)

_ROLES = ("user", "assistant", "system", "developer")
_TEXTS = frozenset({"input_text", "output_text", "text", "reasoning_text", "summary_text"})


def chat_messages(asked: Any, instructions: Any) -> list[Json]:
    conversation = ConversationBuilder()
    if instructions:
        conversation.system(require_text(instructions, "instructions"))
    if isinstance(asked, str):
        asked = [{"role": "user", "content": asked}]
    for at, item in require_objects(asked, "input"):
        _add_item(conversation, item, at)
    messages = conversation.end()
    if not messages:
        raise refused("input", "something must be said")
    return messages


def _add_item(conversation: ConversationBuilder, item: Json, at: str) -> None:
    kind = item.get("type") or "message"
    if kind == "message":
        _add_message(conversation, item, at)
    elif kind == "reasoning":
        # What is encrypted there is not from here.
        thought = _texts(item.get("content"), at) or _texts(item.get("summary"), at)
        if thought:
            conversation.thought(thought)
    elif kind == "tool_search_call":
        asked = require_object(item.get("arguments"), f"{at}.arguments")
        call_id = require_text(item.get("call_id"), f"{at}.call_id")
        conversation.call(call_id, "tool_search", msgspec.json.encode(asked).decode())
    elif kind == "tool_search_output":
        found = [
            require_text(tool.get("name"), where)
            for where, tool in require_objects(item.get("tools"), at)
        ]
        text = f"These can be called now: {', '.join(found)}" if found else "Nothing was found."
        call_id = require_text(item.get("call_id"), f"{at}.call_id")
        conversation.result(call_id, [{"type": "text", "text": text}])
    elif kind == "additional_tools":
        pass  # they are offered with the others
    elif kind in ("function_call", "custom_tool_call"):
        space = item.get("namespace")
        space = None if space is None else require_text(space, f"{at}.namespace")
        name = engine_name(require_text(item.get("name"), f"{at}.name"), space)
        if kind == "function_call":
            arguments = require_text(item.get("arguments"), f"{at}.arguments")
        else:
            arguments = custom_arguments(require_text(item.get("input"), f"{at}.input"))
        conversation.call(require_text(item.get("call_id"), f"{at}.call_id"), name, arguments)
    elif kind in ("function_call_output", "custom_tool_call_output"):
        parts = _parts(item.get("output"), f"{at}.output")
        conversation.result(require_text(item.get("call_id"), f"{at}.call_id"), parts)
    elif kind == "item_reference":
        raise refused(at, "nothing is kept between requests; send the item itself")
    else:
        raise refused(f"{at}.type", f"'{kind}' can't be told to this engine; leave it out")


def _add_message(conversation: ConversationBuilder, message: Json, at: str) -> None:
    role = require_choice(message.get("role"), f"{at}.role", _ROLES)
    parts = _parts(message.get("content"), f"{at}.content")
    if role == "user":
        conversation.user(parts)
        return
    if any(part["type"] != "text" for part in parts):
        raise refused(f"{at}.content", f"what the {role} says can only be text")
    if role == "assistant":
        conversation.assistant("".join(part["text"] for part in parts), joint="\n\n")
    else:
        conversation.system("\n".join(part["text"] for part in parts))


def _texts(content: Any, at: str) -> str:
    if content is None:
        return ""
    return "\n".join(part["text"] for part in _parts(content, at) if part["type"] == "text")


def _parts(content: Any, place: str) -> list[Json]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [_part(part, at) for at, part in require_objects(content, place)]


def _part(part: Json, at: str) -> Json:
    kind = part.get("type")
    if kind in _TEXTS:
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
        raise refused(at, "there are no files here; send text, or an image as its 'image_url'")
    raise refused(f"{at}.type", f"'{kind}' can't be told to this engine; send text or images")
