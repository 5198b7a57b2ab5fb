"""Tokens' probabilities as Ollama tells them, of the two shapes that engines have for them."""

from __future__ import annotations

from typing import TypeGuard

from fabric_client.translation.lenient_json import Json, rows


def tokens(told: object, most: int) -> list[Json]:
    """One row for each token, of a choice's ``logprobs``, with up to ``most`` alternatives."""
    found = _of_lists(told) if _is_of_lists(told) else _of_rows(told)
    for row in found:
        row["top_logprobs"] = row["top_logprobs"][:most]
        if not row["top_logprobs"]:
            del row["top_logprobs"]
    return found


def _is_of_lists(told: object) -> TypeGuard[Json]:
    return isinstance(told, dict) and isinstance(told.get("tokens"), list)


def _of_rows(told: object) -> list[Json]:
    return [
        {**_row(one), "top_logprobs": [_row(other) for other in rows(one, "top_logprobs")]}
        for one in rows(told, "content")
    ]


def _row(one: Json) -> Json:
    return {name: one[name] for name in ("token", "logprob", "bytes") if name in one}


def _of_lists(told: Json) -> list[Json]:
    """Of /v1/completions, as OpenAI once had it: a list of tokens, one of numbers, one of maps."""

    def at(key: str, index: int) -> object:
        column = told.get(key)
        return column[index] if isinstance(column, list) and index < len(column) else None

    found: list[Json] = []
    for index, token in enumerate(told["tokens"]):
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
