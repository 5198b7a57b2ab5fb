"""Lenient access to the documents of engines: what is missing or malformed counts as absent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from fabric_client.engines.weights import NONE, Weights, quantization_in_name, weights
from fabric_client.offer.names import is_name, is_place
from protocol.messages import ModelReport

MAX_CAPABILITIES = 32
MAX_INTEGER = 2**63 - 1

Documents = Mapping[str, object]
"""JSON documents by the path they were fetched from."""


class Facts(NamedTuple):
    models: list[ModelReport]
    """With the names by which the engine is asked, which may be paths."""
    slots: int


def get(document: object, *path: str) -> object:
    for key in path:
        if not isinstance(document, dict):
            return None
        document = document.get(key)
    return document


def text_at(document: object, *path: str) -> str | None:
    value = get(document, *path)
    return value if isinstance(value, str) else None


def texts_at(document: object, *path: str) -> list[str]:
    value = get(document, *path)
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def count_at(document: object, *path: str) -> int | None:
    value = get(document, *path)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_INTEGER:
        return None
    return value


def rows_at(document: object, key: str) -> list[object]:
    value = get(document, key)
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def report_of(
    name: str | None,
    size: int | None,
    context: int | None,
    loaded: bool | None,
    capabilities: Iterable[str],
    told: Weights = NONE,
) -> ModelReport | None:
    if name is None or not is_place(name):
        return None
    fit = list(dict.fromkeys(filter(is_name, capabilities)))
    return ModelReport(name, size, context or None, loaded, fit[:MAX_CAPABILITIES], *told)


def tidy(models: Iterable[ModelReport | None]) -> list[ModelReport]:
    by_name = {model.name: model for model in reversed(list(models)) if model is not None}
    return list(reversed(by_name.values()))


def weights_by_name(row: object) -> Weights:
    """Read what the name of a repository or folder says, which vLLM reports as ``root``."""
    names = text_at(row, "root"), text_at(row, "id")
    return weights(quantization=next(filter(None, map(quantization_in_name, names)), None))
