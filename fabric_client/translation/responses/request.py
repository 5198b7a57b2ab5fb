"""OpenAI's Responses API for engines that speak the OpenAI chat API: the question.

docs/dialects.md has the table.  Nothing is kept between questions: whoever asks sends the whole
conversation, as with ``store: false`` on the official API.
"""

from __future__ import annotations

from typing import Any

from fabric_client.translation import TranslatedRequest
from fabric_client.translation.chat import PATH, ChatTranslator
from fabric_client.translation.responses.conversation import chat_messages
from fabric_client.translation.responses.encoder import ResponsesEncoder
from fabric_client.translation.responses.tools import ToolSet
from fabric_client.translation.validation import (
    Json,
    add_template_switches,
    encode_body,
    json_schema_format,
    parse_body,
    pass_unknown_fields,
    refused,
    reject_if_set,
    require_bool,
    require_choice,
    require_count,
    require_list,
    require_object,
    require_text,
)

IGNORED = frozenset(
    {
        "access_programs",
        "client_metadata",
        "max_tool_calls",
        "metadata",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "stream_options",
        "truncation",
    }
)
"""Hints, and what concerns only what is kept or run at OpenAI."""
_ECHOED = ("prompt_cache_key", "safety_identifier", "user")
_USED = frozenset(
    {
        "background",
        "chat_template_kwargs",
        "context_management",
        "conversation",
        "include",
        "input",
        "instructions",
        "max_output_tokens",
        "model",
        "moderation",
        "parallel_tool_calls",
        "previous_response_id",
        "prompt",
        "reasoning",
        "stream",
        "temperature",
        "text",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "user",
    }
)
_EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high"}
"""Only the middle three are known to every engine; ``none`` is a switch of the template's."""


def translate(body: bytes) -> TranslatedRequest:
    """``POST /v1/responses``."""
    asked = parse_body(body)
    _reject_unsupported(asked)
    chat: Json = {"model": require_text(asked.get("model"), "model")}
    tools = ToolSet(asked.get("tools"), asked.get("tool_choice"), asked.get("input"))
    chat["messages"] = chat_messages(asked.get("input"), asked.get("instructions"))
    if tools.offered:
        chat["tools"] = tools.offered
        if tools.choice is not None:
            chat["tool_choice"] = tools.choice
        if asked.get("parallel_tool_calls") is not None:
            parallel = require_bool(asked["parallel_tool_calls"], "parallel_tool_calls")
            chat["parallel_tool_calls"] = parallel
    for name in ("temperature", "top_p"):
        if asked.get(name) is not None:
            chat[name] = asked[name]
    if asked.get("max_output_tokens") is not None:
        chat["max_tokens"] = require_count(asked["max_output_tokens"], "max_output_tokens")
    if asked.get("user") is not None:
        chat["user"] = require_text(asked["user"], "user")
    _add_text(asked, chat)
    _add_reasoning(asked, chat)
    if require_bool(asked.get("stream") or False, "stream"):
        chat["stream"] = True
        chat["stream_options"] = {"include_usage": True}
    pass_unknown_fields(chat, asked, _USED | IGNORED)
    teller = ResponsesEncoder(_echo(asked), tools)
    return TranslatedRequest(PATH, encode_body(chat), ChatTranslator(teller))


def _reject_unsupported(asked: Json) -> None:
    kept = "nothing is kept between requests; send the whole conversation as 'input'"
    reject_if_set(asked, "previous_response_id", kept)
    reject_if_set(asked, "conversation", kept)
    reject_if_set(asked, "prompt", "there are no stored prompts; send its text as 'instructions'")
    reject_if_set(asked, "background", "answers are given at once or not at all; leave it out")
    reject_if_set(asked, "context_management", "contexts are not made shorter here; leave it out")
    reject_if_set(asked, "moderation", "nobody moderates here; leave it out")
    reject_if_set(asked, "top_logprobs", "this engine can't tell them here; use chat completions")
    if "message.output_text.logprobs" in require_list(asked.get("include") or [], "include"):
        raise refused("include", "log probabilities can't be told here; use chat completions")


def _add_text(asked: Json, chat: Json) -> None:
    text = require_object(asked.get("text") or {}, "text")
    for name in text.keys() - {"format", "verbosity"}:
        raise refused(f"text.{name}", "it is not known here")
    if text.get("verbosity") is not None:
        verbosities = ("low", "medium", "high")
        chat["verbosity"] = require_choice(text["verbosity"], "text.verbosity", verbosities)
    wanted = require_object(text.get("format") or {"type": "text"}, "text.format")
    kinds = ("text", "json_object", "json_schema")
    kind = require_choice(wanted.get("type"), "text.format.type", kinds)
    if kind == "json_object":
        chat["response_format"] = {"type": kind}
    elif kind == "json_schema":
        name = require_text(wanted.get("name"), "text.format.name")
        schema, strict = wanted.get("schema"), wanted.get("strict")
        described = json_schema_format(name, schema, "text.format.schema", strict)
        if wanted.get("description"):
            described["json_schema"]["description"] = wanted["description"]
        chat["response_format"] = described


def _add_reasoning(asked: Json, chat: Json) -> None:
    reasoning = require_object(asked.get("reasoning") or {}, "reasoning")
    effort = reasoning.get("effort")
    if effort is not None:
        effort = require_choice(effort, "reasoning.effort", ("none", *_EFFORTS))
    add_template_switches(chat, asked, thinks=False if effort == "none" else None)
    if effort in _EFFORTS:
        chat["reasoning_effort"] = _EFFORTS[effort]


def _echo(asked: Json) -> Json:
    """What answers repeat of the question, with what was made of it."""
    reasoning = asked.get("reasoning") or {}
    text: dict[str, Any] = {"format": {"type": "text"}} | (asked.get("text") or {})
    parallel = asked.get("parallel_tool_calls")
    return {
        "model": asked["model"],
        "instructions": asked.get("instructions"),
        "max_output_tokens": asked.get("max_output_tokens"),
        "parallel_tool_calls": True if parallel is None else parallel,
        "previous_response_id": None,
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        "store": False,
        "temperature": asked.get("temperature"),
        "text": text,
        "tool_choice": asked.get("tool_choice") or "auto",
        "tools": asked.get("tools") or [],
        "top_p": asked.get("top_p"),
        "truncation": "disabled",
        "background": False,
        "metadata": asked.get("metadata") or {},
    } | {name: asked.get(name) for name in _ECHOED}
