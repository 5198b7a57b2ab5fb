"""Requests of OpenAI's Responses API, for engines that speak the OpenAI chat API.

docs/dialects.md has the table of fields.  Nothing is stored between requests: each must contain the
whole conversation, as with ``store: false`` at OpenAI.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from fabric_client.translation import TranslatedRequest
from fabric_client.translation.chat import PATH, ChatTranslator
from fabric_client.translation.lenient_json import Json
from fabric_client.translation.responses.conversation import chat_messages
from fabric_client.translation.responses.encoder import ResponsesEncoder
from fabric_client.translation.responses.tools import ToolSet, describe_tools
from fabric_client.translation.validation import (
    add_template_switches,
    encode_body,
    invalid,
    json_schema_format,
    parse_body,
    pass_unknown_fields,
    reject_if_set,
    require_bool,
    require_choice,
    require_count,
    require_list,
    require_number,
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
"""Hints, and fields about what OpenAI stores or runs."""
_ECHOED = ("max_tool_calls", "prompt_cache_key", "safety_identifier", "user")
_SAMPLING = {"temperature": 1.0, "top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""Fields that are the same in both APIs, and what answers say for those that are not given: what
OpenAI documents as their default.  The engine's default, which it does not tell, may be another."""
_TRANSLATED = frozenset(
    {
        "background",
        "chat_template_kwargs",
        "context_management",
        "conversation",
        "frequency_penalty",
        "include",
        "input",
        "instructions",
        "max_output_tokens",
        "model",
        "moderation",
        "parallel_tool_calls",
        "presence_penalty",
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
"""Every engine knows low, medium and high only; ``none`` is a switch of the chat template."""


def translate(body: bytes, clock: Callable[[], int] = time.time_ns) -> TranslatedRequest:
    """Translate ``POST /v1/responses``; ``clock`` returns nanoseconds since 1970."""
    request = parse_body(body)
    chat, tools = _read_prompt(request)
    if tools.functions:
        if tools.choice is not None:
            chat["tool_choice"] = tools.choice
        if request.get("parallel_tool_calls") is not None:
            parallel = require_bool(request["parallel_tool_calls"], "parallel_tool_calls")
            chat["parallel_tool_calls"] = parallel
    for name in _SAMPLING:
        if request.get(name) is not None:
            chat[name] = require_number(request[name], name)
    if request.get("max_output_tokens") is not None:
        chat["max_tokens"] = require_count(request["max_output_tokens"], "max_output_tokens")
    if request.get("user") is not None:
        chat["user"] = require_text(request["user"], "user")
    _add_text(request, chat)
    _add_reasoning(request, chat)
    if require_bool(request.get("stream") or False, "stream"):
        chat["stream"] = True
        chat["stream_options"] = {"include_usage": True}
    pass_unknown_fields(chat, request, _TRANSLATED | IGNORED)
    encoder = ResponsesEncoder(_echo(request), tools.offered, clock)
    return TranslatedRequest(
        PATH, encode_body(chat), ChatTranslator(encoder, stream="stream" in chat)
    )


def read_prompt(request: Json) -> Json:
    """Return the fields of the chat API that make up the prompt."""
    return _read_prompt(request)[0]


def _read_prompt(request: Json) -> tuple[Json, ToolSet]:
    _reject_unsupported(request)
    chat: Json = {"model": require_text(request.get("model"), "model")}
    tools = ToolSet(request.get("tools"), request.get("tool_choice"), request.get("input"))
    chat["messages"] = chat_messages(request.get("input"), request.get("instructions"))
    if tools.functions:
        chat["tools"] = tools.functions
    return chat, tools


def _reject_unsupported(request: Json) -> None:
    stateless = "is not supported: nothing is stored; send the whole conversation in 'input'"
    reject_if_set(request, "previous_response_id", stateless)
    reject_if_set(request, "conversation", stateless)
    reject_if_set(request, "prompt", "is not supported; send its text in 'instructions'")
    reject_if_set(request, "background", "is not supported; leave it out")
    reject_if_set(request, "context_management", "is not supported; leave it out")
    reject_if_set(request, "moderation", "is not supported; leave it out")
    reject_if_set(request, "top_logprobs", "is not supported here; use /v1/chat/completions")
    if "message.output_text.logprobs" in require_list(request.get("include") or [], "include"):
        raise invalid("include", "has logprobs, not supported here; use /v1/chat/completions")


def _add_text(request: Json, chat: Json) -> None:
    text = require_object(request.get("text") or {}, "text")
    for name in text.keys() - {"format", "verbosity"}:
        raise invalid(f"text.{name}", "is not supported")
    if text.get("verbosity") is not None:
        verbosities = ("low", "medium", "high")
        chat["verbosity"] = require_choice(text["verbosity"], "text.verbosity", verbosities)
    format = require_object(text.get("format") or {"type": "text"}, "text.format")
    kinds = ("text", "json_object", "json_schema")
    kind = require_choice(format.get("type"), "text.format.type", kinds)
    if kind == "json_object":
        chat["response_format"] = {"type": kind}
    elif kind == "json_schema":
        name = require_text(format.get("name"), "text.format.name")
        schema, strict = format.get("schema"), format.get("strict")
        described = json_schema_format(name, schema, "text.format.schema", strict)
        if format.get("description"):
            described["json_schema"]["description"] = format["description"]
        chat["response_format"] = described


def _add_reasoning(request: Json, chat: Json) -> None:
    reasoning = require_object(request.get("reasoning") or {}, "reasoning")
    effort = reasoning.get("effort")
    if effort is not None:
        effort = require_choice(effort, "reasoning.effort", ("none", *_EFFORTS))
    add_template_switches(chat, request, thinking=False if effort == "none" else None)
    if effort in _EFFORTS:
        chat["reasoning_effort"] = _EFFORTS[effort]


def _echo(request: Json) -> Json:
    """Return the fields of the request that answers repeat."""
    reasoning = request.get("reasoning") or {}
    given = request.get("text") or {}
    format = given.get("format") or {"type": "text"}
    if format["type"] == "json_schema":
        format = {"description": None, "strict": False} | format
    parallel = request.get("parallel_tool_calls")
    sampling = {
        name: usual if request.get(name) is None else request[name]
        for name, usual in _SAMPLING.items()
    }
    return {
        "model": request["model"],
        "instructions": request.get("instructions"),
        "max_output_tokens": request.get("max_output_tokens"),
        "parallel_tool_calls": True if parallel is None else parallel,
        "previous_response_id": None,
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        "store": False,
        "text": {**given, "format": format},
        "tool_choice": request.get("tool_choice") or "auto",
        "tools": describe_tools(request.get("tools")),
        "top_logprobs": 0,
        "truncation": "disabled",
        "background": False,
        "service_tier": "default",
        "metadata": request.get("metadata") or {},
        **sampling,
    } | {name: request.get(name) for name in _ECHOED}
