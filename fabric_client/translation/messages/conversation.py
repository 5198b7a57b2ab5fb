"""The conversation in a question of Anthropic's Messages API, as messages of the chat API."""

from __future__ import annotations

from typing import Any

import msgspec

from fabric_client.translation.conversation_builder import ConversationBuilder
from fabric_client.translation.validation import (
    Json,
    refused,
    require_choice,
    require_object,
    require_objects,
    require_text,
)

_BILLING = "x-anthropic-billing-header:"
"""Claude Code's word to Anthropic, in front of the prompt.  It differs from question to question,
so that with it no engine could use its cache."""


def chat_messages(system: Any, messages: Any) -> list[Json]:
    conversation = ConversationBuilder()
    if system := system_text(system, "system"):
        conversation.system(system)
    for at, message in require_objects(messages, "messages"):
        role = require_choice(message.get("role"), f"{at}.role", ("user", "assistant", "system"))
        content, place = message.get("content"), f"{at}.content"
        if role == "system":
            conversation.system(system_text(content, place))
            continue
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        for where, block in require_objects(content, place):
            if role == "user":
                _add_by_user(conversation, block, where)
            else:
                _add_by_assistant(conversation, block, where)
    told = conversation.end()
    if not told or told[-1]["role"] == "system":
        raise refused("messages", "at least one message is needed")
    return told


def system_text(system: Any, place: str) -> str:
    if system is None or isinstance(system, str):
        return system or ""
    texts = [_block_text(block, at) for at, block in require_objects(system, place)]
    return "\n".join(text for text in texts if not text.startswith(_BILLING))


def _add_by_user(conversation: ConversationBuilder, block: Json, at: str) -> None:
    if block.get("type") != "tool_result":
        conversation.user([_part(block, at)])
        return
    content = block.get("content")
    if content is None or isinstance(content, str):
        content = [{"type": "text", "text": content or ""}]
    parts = [_part(part, where) for where, part in require_objects(content, f"{at}.content")]
    call_id = require_text(block.get("tool_use_id"), f"{at}.tool_use_id")
    conversation.result(call_id, parts, failed=bool(block.get("is_error")))


def _add_by_assistant(conversation: ConversationBuilder, block: Json, at: str) -> None:
    kind = block.get("type")
    if kind == "text":
        conversation.assistant(_block_text(block, at))
    elif kind == "thinking":
        conversation.thought(require_text(block.get("thinking"), f"{at}.thinking"))
    elif kind == "redacted_thinking":
        pass  # only Anthropic can read it
    elif kind == "tool_use":
        given = msgspec.json.encode(require_object(block.get("input"), f"{at}.input")).decode()
        name = require_text(block.get("name"), f"{at}.name")
        conversation.call(require_text(block.get("id"), f"{at}.id"), name, given)
    else:
        raise refused(f"{at}.type", f"'{kind}' can't be told to this engine; leave it out")


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
    raise refused(f"{at}.type", f"'{kind}' can't be told to this engine; send text or images")


def _block_text(block: Json, at: str) -> str:
    if block.get("type") != "text":
        raise refused(f"{at}.type", "only text can stand here")
    return require_text(block.get("text"), f"{at}.text")


def _image_url(source: Json, at: str) -> str:
    if source.get("type") == "url":
        return require_text(source.get("url"), f"{at}.url")
    if source.get("type") == "base64":
        media = require_text(source.get("media_type"), f"{at}.media_type")
        return f"data:{media};base64,{require_text(source.get('data'), f'{at}.data')}"
    raise refused(f"{at}.type", "there are no files here; send the image as base64 or by its url")


def _document_text(block: Json, at: str) -> str:
    if require_object(block.get("citations") or {}, f"{at}.citations").get("enabled"):
        raise refused(f"{at}.citations", "engines can't cite; leave it out")
    source = require_object(block.get("source"), f"{at}.source")
    texts = [require_text(block.get(name) or "", f"{at}.{name}") for name in ("title", "context")]
    if source.get("type") == "text":
        texts.append(require_text(source.get("data"), f"{at}.source.data"))
    elif source.get("type") == "content":
        content = source.get("content")
        if isinstance(content, str):
            texts.append(content)
        else:
            place = f"{at}.source.content"
            texts += [_block_text(part, at) for at, part in require_objects(content, place)]
    else:
        raise refused(
            f"{at}.source.type", "engines read no PDFs or files; send the document's text"
        )
    return "\n".join(filter(None, texts))
