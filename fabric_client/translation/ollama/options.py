"""Ollama's options as OpenAI's fields and those that engines have added.

Sources: Ollama's api/types.go and docs/modelfile; vLLM's extra sampling parameters; llama-server's
README.  Engines ignore options that they don't know, so these are rejected here, unless the value
is the one without effect.
"""

from __future__ import annotations

from typing import Any

from fabric_client.translation.lenient_json import Json
from fabric_client.translation.validation import invalid

LOAD_OPTIONS = frozenset(
    {
        *("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "numa", "low_vram"),
        *("f16_kv", "vocab_only", "logits_all", "use_mmap", "use_mlock", "num_keep"),
        "penalize_newline",
    }
)
"""Options for loading a model, and for a full context.  Ignored: these engines load theirs as their
owner configured it.  ``penalize_newline`` is ignored by Ollama itself."""

_NUMBERS = frozenset({"temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty"})
_INTEGERS = frozenset({"top_k", "seed"})
_LLAMA_NUMBERS = frozenset({"typical_p", "mirostat_tau", "mirostat_eta"})
_LLAMA_INTEGERS = frozenset({"repeat_last_n", "mirostat"})
_NEUTRAL = {"typical_p": 1, "tfs_z": 1, "mirostat": 0}
_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "max": "high"}


def sampling_fields(body: Json, kind: str) -> Json:
    """Translate ``options`` for an engine of this kind."""
    given = body.get("options")
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise invalid("options", "must be an object")
    is_llama = kind == "llama-server"
    fields: Json = {}
    for name, value in given.items():
        if value is None or name in LOAD_OPTIONS:
            continue
        if name in _NUMBERS or (is_llama and name in _LLAMA_NUMBERS):
            fields[name] = _number(name, value)
        elif name in _INTEGERS or (is_llama and name in _LLAMA_INTEGERS):
            fields[name] = int(_number(name, value))
        elif name == "num_predict":
            if (most := int(_number(name, value))) > 0:  # otherwise there is no limit
                fields["max_tokens"] = most
        elif name == "repeat_penalty":
            renamed = name if kind in ("llama-server", "lm-studio") else "repetition_penalty"
            fields[renamed] = _number(name, value)
        elif name == "stop":
            fields["stop"] = _texts(name, value)
        elif not _is_neutral(name, value, given):
            raise invalid(
                f"options.{name}",
                "is not supported by the engine that serves this model; leave it out",
            )
    return fields


def _is_neutral(name: str, value: object, given: Json) -> bool:
    """Return whether an option has no effect with this value."""
    if name == "repeat_last_n":
        return given.get("repeat_penalty") in (None, 1)
    if name in ("mirostat_tau", "mirostat_eta"):
        return not given.get("mirostat")
    return name in _NEUTRAL and value == _NEUTRAL[name]


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 2**63:
        raise invalid(f"options.{name}", "must be a number")
    return value


def _texts(name: str, value: object) -> list[str]:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise invalid(f"options.{name}", "must be an array of strings")
    return found


def thinking_fields(body: Json) -> Json:
    """Translate ``think`` to what chat templates and engines read."""
    think = body.get("think")
    if think is None:
        return {}
    if isinstance(think, str) and think in _EFFORTS:
        effort = _EFFORTS[think]
        switches: Json = {"enable_thinking": True, "thinking": True, "reasoning_effort": effort}
        return {"reasoning_effort": effort, "chat_template_kwargs": switches}
    if not isinstance(think, bool):
        raise invalid("think", "must be true, false, 'low', 'medium', 'high' or 'max'")
    # Qwen's templates and most others read the first name, DeepSeek's the second.
    return {"chat_template_kwargs": {"enable_thinking": think, "thinking": think}}


def format_fields(body: Json) -> Json:
    """Translate ``format`` for a chat."""
    match _format(body):
        case None:
            return {}
        case "json":
            return {"response_format": {"type": "json_object"}}
        case schema:
            described = {"name": "format", "schema": schema, "strict": True}
            return {"response_format": {"type": "json_schema", "json_schema": described}}


def raw_format_fields(body: Json, kind: str) -> Json:
    """Translate ``format`` for a raw prompt, for which OpenAI's API has no field."""
    format = _format(body)
    if format is None:
        return {}
    if kind == "vllm":
        return format_fields(body)
    if kind == "llama-server":
        return {"json_schema": {"type": "object"} if format == "json" else format}
    raise invalid(
        "format", "can't be used with 'raw' on the engine that serves this model; leave one out"
    )


def _format(body: Json) -> Any:
    format = body.get("format")
    if format is None or format == "":
        return None
    if format != "json" and not isinstance(format, dict):
        raise invalid("format", "must be 'json' or a JSON schema")
    return format


def requested_logprobs(body: Json) -> tuple[bool, int]:
    """Return whether ``logprobs`` are requested, and the number of alternatives to each token."""
    top = body.get("top_logprobs") or 0
    if isinstance(top, bool) or not isinstance(top, int) or not 0 <= top <= 20:
        raise invalid("top_logprobs", "must be between 0 and 20")
    return body.get("logprobs") is True, top


def is_streamed(body: Json) -> bool:
    """Return ``stream``, which is true by default."""
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise invalid("stream", "must be true or false")
    return stream is not False


def reject_debugging(body: Json) -> None:
    if body.get("_debug_render_only"):
        raise invalid("_debug_render_only", "is not supported; leave it out")
