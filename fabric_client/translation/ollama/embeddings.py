"""An engine's embeddings as Ollama's."""

from __future__ import annotations

from collections.abc import Callable

from fabric_client.translation.collector import CollectingTranslator
from fabric_client.translation.lenient_json import Json, inner, rows


class EmbeddingsTranslator(CollectingTranslator):
    """``many``: the answer of ``/api/embed``, otherwise that of ``/api/embeddings``."""

    def __init__(self, model: str, many: bool, clock: Callable[[], int]) -> None:
        super().__init__()
        self._model = model
        self._many = many
        self._clock = clock
        self._asked_at = clock()

    def told(self, document: Json) -> object:
        found = sorted(rows(document, "data"), key=_index)
        vectors = [row.get("embedding") for row in found]
        if not vectors or not all(isinstance(vector, list) for vector in vectors):
            return {"error": "the engine's answer has no embeddings"}
        if not self._many:
            return {"embedding": vectors[0]}
        answer = {
            "model": self._model,
            "embeddings": vectors,
            "total_duration": max(0, self._clock() - self._asked_at),
            "load_duration": 0,
        }
        if isinstance(tokens := inner(document, "usage").get("prompt_tokens"), int):
            answer["prompt_eval_count"] = tokens
        return answer


def _index(row: Json) -> int:
    index = row.get("index")
    return index if isinstance(index, int) else 0
