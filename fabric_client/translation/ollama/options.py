"""What Ollama's users set, in OpenAI's words and those that engines have added to them.

Sources: Ollama's api/types.go and docs/modelfile; vLLM's extra sampling parameters; llama-server's
README.  A setting that an engine does not know changes nothing there, so it is refused here, unless
its value is the one that changes nothing.
"""

from __future__ import annotations

from typing import Any

from fabric_client.translation import TranslationError
from fabric_client.translation.lenient_json import Json

LOAD_OPTIONS = frozenset(
    {
        *("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "numa", "low_vram"),
        *("f16_kv", "vocab_only", "logits_all", "use_mmap", "use_mlock", "num_keep"),
        "penalize_newline",
    }
)
"""How Ollama is to load the model, and what it keeps when a context is full.  These engines have
loaded theirs, as their owner wanted it; so these are ignored.  ``penalize_newline`` Ollama itself
ignores by now."""

_NUMBERS = frozenset({"temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty"})
_COUNTS = frozenset({"top_k", "seed"})
_LLAMA_NUMBERS = frozenset({"typical_p", "mirostat_tau", "mirostat_eta"})
_LLAMA_COUNTS = frozenset({"repeat_last_n", "mirostat"})
_NEUTRAL = {"typical_p": 1, "tfs_z": 1, "mirostat": 0}
_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "max": "high"}


def engine_fields(body: Json, kind: str) -> Json:
    """``options`` as fields of a question to an engine of that kind."""
    given = body.get("options")
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise TranslationError("options", "options must be an object")
    is_llama = kind == "llama-server"
    fields: Json = {}
    for name, value in given.items():
        if value is None or name in LOAD_OPTIONS:
            continue
        if name in _NUMBERS or (is_llama and name in _LLAMA_NUMBERS):
            fields[name] = _number(name, value)
        elif name in _COUNTS or (is_llama and name in _LLAMA_COUNTS):
            fields[name] = int(_number(name, value))
        elif name == "num_predict":
            if (most := int(_number(name, value))) > 0:  # otherwise as many as there is room for
                fields["max_tokens"] = most
        elif name == "repeat_penalty":
            word = name if kind in ("llama-server", "lm-studio") else "repetition_penalty"
            fields[word] = _number(name, value)
        elif name == "stop":
            fields["stop"] = _texts(name, value)
        elif not _changes_nothing(name, value, given):
            raise TranslationError(
                f"options.{name}",
                f"option '{name}' is not one that the engine which serves this model knows; "
                f"leave it out",
            )
    return fields


def _changes_nothing(name: str, value: object, given: Json) -> bool:
    if name == "repeat_last_n":
        return given.get("repeat_penalty") in (None, 1)
    if name in ("mirostat_tau", "mirostat_eta"):
        return not given.get("mirostat")
    return name in _NEUTRAL and value == _NEUTRAL[name]


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 2**63:
        raise TranslationError(f"options.{name}", f"option '{name}' must be a number")
    return value


def _texts(name: str, value: object) -> list[str]:
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise TranslationError(f"options.{name}", f"option '{name}' must be a list of strings")
    return found


def thinking(body: Json) -> Json:
    """``think`` as what chat templates and engines listen to."""
    think = body.get("think")
    if think is None:
        return {}
    if isinstance(think, str) and think in _EFFORTS:
        effort = _EFFORTS[think]
        words: Json = {"enable_thinking": True, "thinking": True, "reasoning_effort": effort}
        return {"reasoning_effort": effort, "chat_template_kwargs": words}
    if not isinstance(think, bool):
        raise TranslationError(
            "think", "think must be true, false, 'low', 'medium', 'high' or 'max'"
        )
    # Qwen's templates and most others know the first name, DeepSeek's the second.
    return {"chat_template_kwargs": {"enable_thinking": think, "thinking": think}}


def shape(body: Json) -> Json:
    """``format`` for a chat."""
    match _format(body):
        case None:
            return {}
        case "json":
            return {"response_format": {"type": "json_object"}}
        case schema:
            wanted = {"name": "format", "schema": schema, "strict": True}
            return {"response_format": {"type": "json_schema", "json_schema": wanted}}


def shape_of_text(body: Json, kind: str) -> Json:
    """``format`` for a prompt that is taken as it is: OpenAI has no word for that."""
    wanted = _format(body)
    if wanted is None:
        return {}
    if kind == "vllm":
        return shape(body)
    if kind == "llama-server":
        return {"json_schema": {"type": "object"} if wanted == "json" else wanted}
    raise TranslationError(
        "format", "the engine which serves this model has no format with raw; leave one of them out"
    )


def _format(body: Json) -> Any:
    wanted = body.get("format")
    if wanted is None or wanted == "":
        return None
    if wanted != "json" and not isinstance(wanted, dict):
        raise TranslationError("format", "format must be 'json' or a JSON schema")
    return wanted


def probabilities(body: Json) -> tuple[bool, int]:
    """Whether ``logprobs`` are wanted, and how many alternatives to each token."""
    top = body.get("top_logprobs") or 0
    if isinstance(top, bool) or not isinstance(top, int) or not 0 <= top <= 20:
        raise TranslationError("top_logprobs", "top_logprobs must be between 0 and 20")
    return body.get("logprobs") is True, top


def streamed(body: Json) -> bool:
    """Ollama streams unless told otherwise."""
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise TranslationError("stream", "stream must be true or false")
    return stream is not False


def reject_debugging(body: Json) -> None:
    if body.get("_debug_render_only"):
        raise TranslationError("_debug_render_only", "the engine can't show what a template makes")
