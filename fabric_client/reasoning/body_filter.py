"""Reasoning of an unstreamed chat completion."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from fabric_client.reasoning.documents import (
    Choice,
    Message,
    decode_completion,
    decode_fields,
    decode_list_of_fields,
)
from fabric_client.reasoning.repair import is_sound, repair
from fabric_client.reasoning.splitter import CONTENT, REASONING, Channel, Splitter, is_plain
from fabric_client.sse import looks_like_events
from fabric_client.translation import Headers
from fabric_client.translation.lenient_json import decode_object
from runtime.engine_errors import find_error

MAX_BODY = 4 * 1024 * 1024
"""Bytes of an answer; a longer one passes unread."""


_encode = msgspec.json.Encoder().encode
_USAGE = re.compile(rb'"usage"\s*:\s*\{').match
"""In JSON text a quote inside a string is written ``\\"``, so this can only be a key."""
_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)


class BodyFilter:
    """Filter of an ``application/json`` body with status 200; returns nothing before its end.

    A body that is an error, or no chat completion at all, gets status 502.
    """

    def __init__(self, inline: bool, headers: Headers) -> None:
        self.decided: tuple[int, Headers] | None = None
        self._markers = inline
        self._headers = headers
        self._held: bytes | bytearray | None = b""
        """None once the answer is too long."""

    def feed(self, data: bytes) -> bytes:
        held = self._held
        if held is None:
            return data
        if not held:  # and mostly that is all of it
            held = data
        elif isinstance(held, bytearray):
            held += data
        else:
            held = bytearray(held) + data
        if len(held) <= MAX_BODY:
            self._held = held
            return b""
        self._held = None
        self.decided = 200, self._headers
        return bytes(held)

    def end(self) -> bytes:
        if self._held is None:
            return b""
        body = bytes(self._held)
        self.decided = 200, self._headers
        try:
            # msgspec checks only the fields that are read for UTF-8.
            return self._with_reasoning(body) if is_sound(body) else self._repair(body)
        except _UNREADABLE:
            return self._repair(body)

    def _repair(self, body: bytes) -> bytes:
        """Return an odd answer in a form that any client can read; an error if it is none."""
        if (better := repair(body)) is not None:
            try:
                return self._with_reasoning(better)
            except _UNREADABLE:
                return better
        if looks_like_events(body.lstrip()):  # of an engine that calls its stream JSON
            self.decided = 200, [("content-type", "text/event-stream")]
            return body
        document = decode_object(body)
        problem = None if document is None else find_error(document)
        self.decided = 502, [("content-type", "application/json")]
        return error_body(problem or "The engine's answer can't be read as a chat completion.")

    def _with_reasoning(self, body: bytes) -> bytes:
        completion = decode_completion(body)
        choices, usage = completion.choices, completion.usage
        changes, reasoning, content = self._look_at(choices)
        shares = None
        if usage is not None and usage.lacks_shares():
            shares = usage.shares(reasoning, content)
        if not changes:
            if shares is None:
                return body
            if added := _insert(body, shares):
                return added
        fields: dict[str, Any] = decode_fields(body)
        if changes:
            written: list[dict[str, Any]] = decode_list_of_fields(fields["choices"])
            for choice, change in zip(written, changes, strict=True):
                choice["message"] = decode_fields(choice["message"]) | change
            fields["choices"] = written
        if shares is not None:
            fields["usage"] = decode_fields(fields["usage"]) | shares
        return _encode(fields)

    def _look_at(self, choices: list[Choice]) -> tuple[list[dict[str, str]], int, int]:
        """Return the changed fields of each message, none if no message has any, and the characters
        of reasoning and of the rest in all of them."""
        changes: list[dict[str, str]] = []
        reasoning = content = 0
        for choice in choices:
            message = choice.message
            text, thought = message.content or "", message.reasoning or message.reasoning_content
            change = None if not thought and is_plain(text) else self._change(message)
            changes.append(change or {})
            if change:
                thought = thought or change.get("reasoning_content")
                text = change.get("content", text)
            if thought:
                reasoning += len(thought)
            content += len(text)
            if message.tool_calls:
                content += sum(len(bytes(call)) for call in message.tool_calls)
        return changes if any(changes) else [], reasoning, content

    def _change(self, message: Message) -> dict[str, str]:
        """Return the changed fields of a message."""
        if message.reasoning or message.reasoning_content:
            alias = message.reasoning if message.reasoning_content is None else None
            return {"reasoning_content": alias} if alias else {}
        if not self._markers or not message.content:
            return {}
        texts: dict[Channel, str] = {REASONING: "", CONTENT: ""}
        for channel, text in Splitter().feed(message.content, last=True):
            texts[channel] += text
        if texts[CONTENT] == message.content:
            return {}
        change = {"content": texts[CONTENT]}
        if texts[REASONING]:
            change["reasoning_content"] = texts[REASONING]
        return change


def error_body(message: str) -> bytes:
    """Return an error of OpenAI's shape."""
    fields = {"message": message, "type": "server_error", "param": None, "code": "engine_error"}
    return _encode({"error": fields})


def _insert(body: bytes, shares: dict[str, int]) -> bytes | None:
    """Insert the shares as text in front of the other usage; None if the place is not certain.

    Costs half as much as encoding the body again, and leaves the rest as the engine wrote it.
    """
    # From the right: usage is near the end, and a word that is not there takes a third of the time.
    at = body.rfind(b'"usage"')
    found = _USAGE(body, at) if at >= 0 else None
    if (
        found is None
        or body.rfind(b'"usage"', 0, at) >= 0
        or body.rfind(b'"analysis_tokens"') >= 0
        or body.rfind(b'"final_tokens"') >= 0
    ):
        return None
    at = found.end()
    added = b'"analysis_tokens":%d,"final_tokens":%d,' % (
        shares["analysis_tokens"],
        shares["final_tokens"],
    )
    return body[:at] + added + body[at:]
