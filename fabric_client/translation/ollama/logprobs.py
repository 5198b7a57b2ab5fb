"""Log probabilities of tokens in Ollama's format, from the two formats that engines have."""

from __future__ import annotations

from typing import TypeGuard

from fabric_client.translation.lenient_json import Json, get_objects


def token_rows(logprobs: object, alternatives: int) -> list[Json]:
    """Translate a choice's ``logprobs`` to a row per token, each with up to ``alternatives``."""
    found = _from_columns(logprobs) if _has_columns(logprobs) else _from_rows(logprobs)
    for row in found:
        row["top_logprobs"] = row["top_logprobs"][:alternatives]
        if not row["top_logprobs"]:
            del row["top_logprobs"]
    return found


def _has_columns(logprobs: object) -> TypeGuard[Json]:
    return isinstance(logprobs, dict) and isinstance(logprobs.get("tokens"), list)


def _from_rows(logprobs: object) -> list[Json]:
    return [
        {**_row(one), "top_logprobs": [_row(other) for other in get_objects(one, "top_logprobs")]}
        for one in get_objects(logprobs, "content")
    ]


def _row(one: Json) -> Json:
    return {name: one[name] for name in ("token", "logprob", "bytes") if name in one}


def _from_columns(logprobs: Json) -> list[Json]:
    """Translate OpenAI's older format, of /v1/completions: lists of tokens, numbers and maps."""

    def at(key: str, index: int) -> object:
        column = logprobs.get(key)
        return column[index] if isinstance(column, list) and index < len(column) else None

    found: list[Json] = []
    for index, token in enumerate(logprobs["tokens"]):
        others = at("top_logprobs", index)
        top = others.items() if isinstance(others, dict) else ()
        found.append(
            {
                "token": token,
                "logprob": at("token_logprobs", index),
                "top_logprobs": [{"token": name, "logprob": value} for name, value in top],
            }
        )
    return found
