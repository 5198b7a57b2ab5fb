"""Conversations on ``/api/chat`` that are written as for OpenAI's API, in Ollama's own form.

Programs keep one history for several services: the arguments of tool calls as text, the content as
a list of parts, images in it as data: URLs, null where there is no content.  Ollama's API takes an
object, a string and bare base64.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from fabric_client.translation.lenient_json import Json, decode_json, decode_object, get_text
from fabric_client.translation.tool_calls import or_empty
from fabric_client.translation.validation import invalid

_FOREIGN = re.compile(rb'"content"\s*:\s*[\[n]|"arguments"\s*:\s*["n]|"tool_call_id"|\\u00[2-7]')
"""Bytes that a history of OpenAI's has; the last may hide the name of a field."""
_TEXTS = frozenset({"text", "input_text", "output_text", "refusal"})
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


def as_ollama_history(body: bytes) -> bytes:
    """Return a body of ``/api/chat`` for Ollama itself; most are returned as they are.

    Raises ``TranslationError`` for content that Ollama's API can't express.
    """
    if _FOREIGN.search(body) is None:
        return body
    try:
        document = decode_json(body)
    except _UNREADABLE:
        return body  # the engine reports what is wrong with it
    messages = document.get("messages") if isinstance(document, dict) else None
    if not isinstance(messages, list):
        return body
    names: dict[str, str] = {}
    rewritten = [
        _rewritten(one, f"messages[{at}]", names) if isinstance(one, dict) else one
        for at, one in enumerate(messages)
    ]
    if rewritten == messages:
        return body
    return msgspec.json.encode({**document, "messages": rewritten})


def _rewritten(message: Json, at: str, names: dict[str, str]) -> Json:
    """Rewrite a message; ``names`` are those of the tools called so far, by the calls' ids."""
    changed = with_plain_content(message, at)
    calls = changed.get("tool_calls")
    if isinstance(calls, list):
        changed = {**changed, "tool_calls": [_plain_call(call, names) for call in calls]}
    id = get_text(changed, "tool_call_id")
    if id in names and not get_text(changed, "tool_name"):
        changed = {**changed, "tool_name": names[id]}  # Ollama's templates know only names
    return changed


def _plain_call(call: Any, names: dict[str, str]) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    if id := get_text(call, "id"):
        names[id] = get_text(function, "name")
    arguments = read_arguments(function.get("arguments"))
    return call if arguments is None else {**call, "function": {**function, "arguments": arguments}}


def read_arguments(given: object) -> Json | None:
    """Return the arguments of a tool call as an object; None if they can't be read as one."""
    if given is None:
        return {}
    if isinstance(given, str):
        return decode_object(or_empty(given).encode("utf-8", "replace"))
    return given if isinstance(given, dict) else None


def with_plain_content(message: Json, at: str) -> Json:
    """Return a message whose content is a string, with its images in ``images``."""
    content = message.get("content", "")
    if isinstance(content, str):
        return message
    if content is None:
        return {**message, "content": ""}
    if not isinstance(content, list) or not content:
        raise invalid(f"{at}.content", "must be a string, or a list of parts")
    texts: list[str] = []
    given = message.get("images")
    images: list[object] = [*given] if isinstance(given, list) else []
    for index, part in enumerate(content):
        _take_part(part, f"{at}.content[{index}]", texts, images)
    changed = {**message, "content": "\n".join(texts)}
    return {**changed, "images": images} if images else changed


def _take_part(part: object, at: str, texts: list[str], images: list[object]) -> None:
    kind = get_text(part, "type")
    if isinstance(part, str):
        texts.append(part)
    elif isinstance(part, dict) and kind in _TEXTS:
        texts.append(get_text(part, "refusal" if kind == "refusal" else "text"))
    elif isinstance(part, dict) and kind in ("image_url", "input_image"):
        images.append(_image(part.get("image_url"), f"{at}.image_url"))
    elif isinstance(part, dict) and kind == "input_audio":
        sound = part.get("input_audio")
        images.append(get_text(sound, "data"))
    else:
        raise invalid(at, "must be a text, an image or a sound")


def _image(given: object, at: str) -> str:
    url = get_text(given, "url") if isinstance(given, dict) else given
    head, mark, data = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not mark or not head.startswith("data:") or not head.endswith(";base64"):
        raise invalid(at, "must be a data: URL in base64: engines open no other")
    return data
