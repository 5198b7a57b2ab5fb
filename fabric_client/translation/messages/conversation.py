"""The conversation of a Messages request, as messages of the chat API."""

from __future__ import annotations

from typing import Any

import msgspec

from fabric_client.translation.conversation_builder import ConversationBuilder
from fabric_client.translation.lenient_json import Json
from fabric_client.translation.validation import (
    invalid,
    require_choice,
    require_object,
    require_objects,
    require_text,
)

_BILLING = "x-anthropic-billing-header:"
"""Claude Code's note to Anthropic, in front of the prompt.  It differs from request to request, so
that with it no engine could use its cache."""


def chat_messages(system: Any, messages: Any) -> list[Json]:
    conversation = ConversationBuilder()
    if system := system_text(system, "system"):
        conversation.add_system(system)
    for at, message in require_objects(messages, "messages"):
        role = require_choice(message.get("role"), f"{at}.role", ("user", "assistant", "system"))
        content, content_at = message.get("content"), f"{at}.content"
        if role == "system":
            conversation.add_system(system_text(content, content_at))
            continue
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        for block_at, block in require_objects(content, content_at):
            if role == "user":
                _add_user_block(conversation, block, block_at)
            else:
                _add_assistant_block(conversation, block, block_at)
    built = conversation.build()
    if not built or built[-1]["role"] == "system":
        raise invalid("messages", "must have at least one message of a user or an assistant")
    return built


def system_text(system: Any, at: str) -> str:
    if system is None or isinstance(system, str):
        return system or ""
    texts = [_block_text(block, where) for where, block in require_objects(system, at)]
    return "\n".join(text for text in texts if not text.startswith(_BILLING))


def _add_user_block(conversation: ConversationBuilder, block: Json, at: str) -> None:
    if block.get("type") != "tool_result":
        conversation.add_user([_part(block, at)])
        return
    content = block.get("content")
    if content is None or isinstance(content, str):
        content = [{"type": "text", "text": content or ""}]
    parts = [_part(part, where) for where, part in require_objects(content, f"{at}.content")]
    call_id = require_text(block.get("tool_use_id"), f"{at}.tool_use_id")
    conversation.add_tool_result(call_id, parts, failed=bool(block.get("is_error")))


def _add_assistant_block(conversation: ConversationBuilder, block: Json, at: str) -> None:
    kind = block.get("type")
    if kind == "text":
        conversation.add_assistant(_block_text(block, at))
    elif kind == "thinking":
        conversation.add_reasoning(require_text(block.get("thinking"), f"{at}.thinking"))
    elif kind == "redacted_thinking":
        pass  # only Anthropic can read it
    elif kind == "tool_use":
        given = require_object(block.get("input"), f"{at}.input")
        arguments = msgspec.json.encode(given).decode()
        name = require_text(block.get("name"), f"{at}.name")
        conversation.add_tool_call(require_text(block.get("id"), f"{at}.id"), name, arguments)
    else:
        raise invalid(f"{at}.type", f"is '{kind}', which this engine does not take; leave it out")


def _part(block: Json, at: str) -> Json:
    kind = block.get("type")
    if kind == "text":
        return {"type": "text", "text": _block_text(block, at)}
    if kind == "image":
        source = require_object(block.get("source"), f"{at}.source")
        return {"type": "image_url", "image_url": {"url": _image_url(source, f"{at}.source")}}
    if kind == "document":
        return {"type": "text", "text": _document_text(block, at)}
    if kind == "search_result":
        found = [_block_text(part, at) for at, part in require_objects(block.get("content"), at)]
        head = [require_text(block.get(name) or "", f"{at}.{name}") for name in ("title", "source")]
        return {"type": "text", "text": "\n".join([*filter(None, head), *found])}
    raise invalid(
        f"{at}.type", f"is '{kind}', which this engine does not take; send text or images"
    )


def _block_text(block: Json, at: str) -> str:
    if block.get("type") != "text":
        raise invalid(f"{at}.type", "must be 'text'")
    return require_text(block.get("text"), f"{at}.text")


def _image_url(source: Json, at: str) -> str:
    if source.get("type") == "url":
        return require_text(source.get("url"), f"{at}.url")
    if source.get("type") == "base64":
        media_type = require_text(source.get("media_type"), f"{at}.media_type")
        return f"data:{media_type};base64,{require_text(source.get('data'), f'{at}.data')}"
    raise invalid(f"{at}.type", "must be 'base64' or 'url': uploaded files are not supported")


def _document_text(block: Json, at: str) -> str:
    if require_object(block.get("citations") or {}, f"{at}.citations").get("enabled"):
        raise invalid(f"{at}.citations", "is not supported; leave it out")
    source = require_object(block.get("source"), f"{at}.source")
    texts = [require_text(block.get(name) or "", f"{at}.{name}") for name in ("title", "context")]
    if source.get("type") == "text":
        texts.append(require_text(source.get("data"), f"{at}.source.data"))
    elif source.get("type") == "content":
        content = source.get("content")
        if isinstance(content, str):
            texts.append(content)
        else:
            blocks = require_objects(content, f"{at}.source.content")
            texts += [_block_text(part, where) for where, part in blocks]
    else:
        raise invalid(
            f"{at}.source.type",
            "must be 'text' or 'content': PDFs and files are not supported; send their text",
        )
    return "\n".join(filter(None, texts))
