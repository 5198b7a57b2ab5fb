"""Requests of Anthropic's Messages API, for engines that speak the OpenAI chat API.

docs/dialects.md has the table of fields.  Where Anthropic's API and engines differ in what they
accept, Anthropic's documentation decides.
"""

from __future__ import annotations

from typing import Any

from fabric_client.translation import TranslatedRequest
from fabric_client.translation.chat import PATH, ChatTranslator
from fabric_client.translation.lenient_json import Json
from fabric_client.translation.messages.conversation import chat_messages
from fabric_client.translation.messages.encoder import MessagesEncoder
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
    require_object,
    require_objects,
    require_text,
)

TOKENIZE_PATH = "/tokenize"
IGNORED = frozenset(
    {
        "anthropic_beta",
        "anthropic_version",
        "betas",
        "cache_control",
        "diagnostics",
        "service_tier",
        "speed",
        "user_profile_id",
        "workspace_id",
    }
)
"""Hints, versions, and accounts at Anthropic: an answer is correct without them."""
_TOKENIZE_FIELDS = (
    "add_generation_prompt",
    "chat_template_kwargs",
    "continue_final_message",
    "messages",
    "model",
    "tools",
)
_SAMPLING_FIELDS = ("temperature", "top_p", "top_k")
"""Fields that both APIs have, with the same meaning."""
_TRANSLATED = frozenset(
    {
        "chat_template_kwargs",
        "container",
        "context_management",
        "inference_geo",
        "max_tokens",
        "mcp_servers",
        "messages",
        "metadata",
        "model",
        "output_config",
        "output_format",
        "stop_sequences",
        "stream",
        "system",
        "thinking",
        "tool_choice",
        "tools",
        *_SAMPLING_FIELDS,
    }
)
_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
"""Every engine knows the first three only."""
_MAX_STOPS = 8192
"""Anthropic takes 8,191."""
_MAX_LOW_BUDGET = 4096
_MAX_MEDIUM_BUDGET = 16384


def translate(body: bytes) -> TranslatedRequest:
    """Translate ``POST /v1/messages``."""
    request = parse_body(body)
    chat = read_prompt(request)
    if "max_tokens" not in request:
        raise invalid("max_tokens", "is required")
    chat["max_tokens"] = require_count(request["max_tokens"], "max_tokens")
    _add_tool_choice(request, chat)
    _add_format_and_effort(request, chat)
    given = _optional_list(request, "stop_sequences")
    if len(given) > _MAX_STOPS:
        raise invalid("stop_sequences", f"has more than {_MAX_STOPS} texts")
    stops = [require_text(stop, "stop_sequences") for stop in given]
    if stops:
        chat["stop"] = stops
    for name in _SAMPLING_FIELDS:
        if request.get(name) is not None:
            chat[name] = request[name]
    user = require_object(request.get("metadata") or {}, "metadata").get("user_id")
    if user is not None:
        chat["user"] = require_text(user, "metadata.user_id")
    if require_bool(request.get("stream") or False, "stream"):
        chat["stream"] = True
        chat["stream_options"] = {"include_usage": True}
    last = chat["messages"][-1]
    prefill = last["content"] if "continue_final_message" in chat else ""
    pass_unknown_fields(chat, request, _TRANSLATED | IGNORED)
    encoder = MessagesEncoder(chat["model"], frozenset(stops), prefill)
    return TranslatedRequest(
        PATH, encode_body(chat), ChatTranslator(encoder, stream="stream" in chat)
    )


def read_prompt(request: Json) -> Json:
    """Return the chat fields that make up the prompt."""
    chat: Json = {"model": require_text(request.get("model"), "model")}
    _reject_unsupported(request)
    chat["messages"] = chat_messages(request.get("system"), request.get("messages"))
    last = chat["messages"][-1]
    if last["role"] == "assistant" and last["content"] and "tool_calls" not in last:
        # A prefilled answer: the engine continues it.
        chat["continue_final_message"] = True
        chat["add_generation_prompt"] = False
    tools = [_tool(tool, at) for at, tool in require_objects(request.get("tools") or [], "tools")]
    if tools:
        chat["tools"] = tools
    _add_thinking(request, chat)
    return chat


def _reject_unsupported(request: Json) -> None:
    reject_if_set(request, "mcp_servers", "is not supported; offer the servers' tools in 'tools'")
    reject_if_set(request, "container", "is not supported; leave it out")
    reject_if_set(request, "inference_geo", "is not supported; leave it out")
    management = require_object(request.get("context_management") or {}, "context_management")
    for at, edit in require_objects(management.get("edits") or [], "context_management.edits"):
        # Claude Code always sends this one; it removes nothing.
        if edit.get("type") != "clear_thinking_20251015" or edit.get("keep") != "all":
            raise invalid(
                at,
                "is not supported: contexts are not edited; leave it out"
                " (Claude Code: CLAUDE_CODE_DISABLE_EXPERIMENTAL_BETAS=1)",
            )


def _optional_list(request: Json, name: str) -> list[Any]:
    return require_list(request.get(name) or [], name)


def _tool(tool: Json, at: str) -> Json:
    kind = tool.get("type") or "custom"
    if kind != "custom":
        raise invalid(
            f"{at}.type",
            f"is '{kind}', a tool that does not run here; use one with an 'input_schema'",
        )
    function: Json = {
        "name": require_text(tool.get("name"), f"{at}.name"),
        "parameters": require_object(tool.get("input_schema"), f"{at}.input_schema"),
    }
    if tool.get("description"):
        function["description"] = require_text(tool["description"], f"{at}.description")
    if tool.get("strict") is not None:
        function["strict"] = require_bool(tool["strict"], f"{at}.strict")
    return {"type": "function", "function": function}


def _add_tool_choice(request: Json, chat: Json) -> None:
    if request.get("tool_choice") is None:
        return
    choice = require_object(request["tool_choice"], "tool_choice")
    kind = require_choice(choice.get("type"), "tool_choice.type", ("auto", "any", "tool", "none"))
    if "tools" not in chat:
        if kind in ("any", "tool"):
            raise invalid("tool_choice", "requires 'tools'")
        return
    if kind == "tool":
        name = require_text(choice.get("name"), "tool_choice.name")
        chat["tool_choice"] = {"type": "function", "function": {"name": name}}
    else:
        chat["tool_choice"] = "required" if kind == "any" else kind
    if choice.get("disable_parallel_tool_use"):
        chat["parallel_tool_calls"] = False


def _add_thinking(request: Json, chat: Json) -> None:
    thinking = require_object(request.get("thinking") or {"type": "disabled"}, "thinking")
    kinds = ("enabled", "adaptive", "disabled")
    kind = require_choice(thinking.get("type"), "thinking.type", kinds)
    add_template_switches(chat, request, thinking=kind != "disabled")
    if kind == "enabled":
        budget = require_count(thinking.get("budget_tokens"), "thinking.budget_tokens")
        low, medium = budget <= _MAX_LOW_BUDGET, budget <= _MAX_MEDIUM_BUDGET
        chat["reasoning_effort"] = "low" if low else "medium" if medium else "high"
        chat["thinking_budget_tokens"] = budget  # llama-server's name for it


def _add_format_and_effort(request: Json, chat: Json) -> None:
    config = require_object(request.get("output_config") or {}, "output_config")
    for name in config.keys() - {"effort", "format"}:
        raise invalid(f"output_config.{name}", "is not supported; leave it out")
    if config.get("effort") is not None:
        effort = require_choice(config["effort"], "output_config.effort", _EFFORTS)
        chat["reasoning_effort"] = _EFFORTS[effort]
    param = "output_config.format" if config.get("format") else "output_format"
    given = config.get("format") or request.get("output_format")
    if given is not None:
        given = require_object(given, param)
        require_choice(given.get("type"), f"{param}.type", ("json_schema",))
        schema = given.get("schema")
        chat["response_format"] = json_schema_format("output", schema, f"{param}.schema")
