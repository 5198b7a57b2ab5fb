"""Anthropic's Messages API for engines that speak the OpenAI chat API: the question.

docs/dialects.md has the table.  Where Anthropic and engines differ in what they can be told, what
the official API documents is what users get.
"""

from __future__ import annotations

from typing import Any

from fabric_client.translation import TranslatedRequest
from fabric_client.translation.chat import PATH, ChatTranslator
from fabric_client.translation.messages.conversation import chat_messages
from fabric_client.translation.messages.encoder import MessagesEncoder
from fabric_client.translation.messages.token_count import TokenCountTranslator
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
"""Hints, names of versions and accounts at Anthropic: an answer without them is a right one."""
_COUNTED = (
    "add_generation_prompt",
    "chat_template_kwargs",
    "continue_final_message",
    "messages",
    "model",
    "tools",
)
_SAME = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k"}
_USED = frozenset(
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
        *_SAME,
    }
)
_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
"""Only the first three are known to every engine."""
_LITTLE_THOUGHT = 4096
_SOME_THOUGHT = 16384


def translate(body: bytes) -> TranslatedRequest:
    """``POST /v1/messages``."""
    asked = parse_body(body)
    chat = _conversation(asked)
    if "max_tokens" not in asked:
        raise refused("max_tokens", "it is required")
    chat["max_tokens"] = require_count(asked["max_tokens"], "max_tokens")
    _add_choice_of_tool(asked, chat)
    _add_format_and_effort(asked, chat)
    stops = [
        require_text(stop, "stop_sequences") for stop in _optional_list(asked, "stop_sequences")
    ]
    if stops:
        chat["stop"] = stops
    for name, chat_name in _SAME.items():
        if asked.get(name) is not None:
            chat[chat_name] = asked[name]
    user = require_object(asked.get("metadata") or {}, "metadata").get("user_id")
    if user is not None:
        chat["user"] = require_text(user, "metadata.user_id")
    if require_bool(asked.get("stream") or False, "stream"):
        chat["stream"] = True
        chat["stream_options"] = {"include_usage": True}
    last = chat["messages"][-1]
    begun = last["content"] if "continue_final_message" in chat else ""
    pass_unknown_fields(chat, asked, _USED | IGNORED)
    teller = MessagesEncoder(chat["model"], frozenset(stops), begun)
    return TranslatedRequest(PATH, encode_body(chat), ChatTranslator(teller))


def count_tokens(body: bytes) -> TranslatedRequest:
    """``POST /v1/messages/count_tokens``, for vLLM: its /tokenize takes conversations."""
    chat = _conversation(parse_body(body))
    asked = {name: chat[name] for name in _COUNTED if name in chat}
    return TranslatedRequest(TOKENIZE_PATH, encode_body(asked), TokenCountTranslator())


def _conversation(asked: Json) -> Json:
    """What makes up the prompt."""
    chat: Json = {"model": require_text(asked.get("model"), "model")}
    _reject_unsupported(asked)
    chat["messages"] = chat_messages(asked.get("system"), asked.get("messages"))
    last = chat["messages"][-1]
    if last["role"] == "assistant" and last["content"] and "tool_calls" not in last:
        # The answer goes on where its beginning, put in the model's mouth, ends.
        chat["continue_final_message"] = True
        chat["add_generation_prompt"] = False
    tools = [_tool(tool, at) for at, tool in require_objects(asked.get("tools") or [], "tools")]
    if tools:
        chat["tools"] = tools
    _add_thinking(asked, chat)
    return chat


def _reject_unsupported(asked: Json) -> None:
    reject_if_set(asked, "mcp_servers", "MCP servers can't be called from here; offer their tools")
    reject_if_set(asked, "container", "there are no containers here")
    reject_if_set(asked, "inference_geo", "no place can be promised here; leave it out")
    management = require_object(asked.get("context_management") or {}, "context_management")
    for at, edit in require_objects(management.get("edits") or [], "context_management.edits"):
        # Claude Code sends this one always; it says that nothing is to be taken out.
        if edit.get("type") != "clear_thinking_20251015" or edit.get("keep") != "all":
            raise refused(
                at,
                "contexts are not edited here; leave it out"
                " (Claude Code: CLAUDE_CODE_DISABLE_EXPERIMENTAL_BETAS=1)",
            )


def _optional_list(asked: Json, name: str) -> list[Any]:
    return require_list(asked.get(name) or [], name)


def _tool(tool: Json, at: str) -> Json:
    kind = tool.get("type") or "custom"
    if kind != "custom":
        raise refused(
            f"{at}.type", f"the tool '{kind}' can't be run here; offer one with an input_schema"
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


def _add_choice_of_tool(asked: Json, chat: Json) -> None:
    if asked.get("tool_choice") is None:
        return
    choice = require_object(asked["tool_choice"], "tool_choice")
    kind = require_choice(choice.get("type"), "tool_choice.type", ("auto", "any", "tool", "none"))
    if "tools" not in chat:
        if kind in ("any", "tool"):
            raise refused("tool_choice", "there are no tools to choose from; give some in 'tools'")
        return
    if kind == "tool":
        name = require_text(choice.get("name"), "tool_choice.name")
        chat["tool_choice"] = {"type": "function", "function": {"name": name}}
    else:
        chat["tool_choice"] = "required" if kind == "any" else kind
    if choice.get("disable_parallel_tool_use"):
        chat["parallel_tool_calls"] = False


def _add_thinking(asked: Json, chat: Json) -> None:
    thinking = require_object(asked.get("thinking") or {"type": "disabled"}, "thinking")
    kind = require_choice(
        thinking.get("type"), "thinking.type", ("enabled", "adaptive", "disabled")
    )
    add_template_switches(chat, asked, thinks=kind != "disabled")
    if kind == "enabled":
        budget = require_count(thinking.get("budget_tokens"), "thinking.budget_tokens")
        few, some = budget <= _LITTLE_THOUGHT, budget <= _SOME_THOUGHT
        chat["reasoning_effort"] = "low" if few else "medium" if some else "high"
        chat["thinking_budget_tokens"] = budget  # llama-server's name for it


def _add_format_and_effort(asked: Json, chat: Json) -> None:
    config = require_object(asked.get("output_config") or {}, "output_config")
    for name in config.keys() - {"effort", "format"}:
        raise refused(f"output_config.{name}", "it can't be kept to here; leave it out")
    if config.get("effort") is not None:
        effort = require_choice(config["effort"], "output_config.effort", _EFFORTS)
        chat["reasoning_effort"] = _EFFORTS[effort]
    param = "output_config.format" if config.get("format") else "output_format"
    wanted = config.get("format") or asked.get("output_format")
    if wanted is not None:
        wanted = require_object(wanted, param)
        require_choice(wanted.get("type"), f"{param}.type", ("json_schema",))
        chat["response_format"] = json_schema_format(
            "output", wanted.get("schema"), f"{param}.schema"
        )
