"""Embeddings of an OpenAI engine as Ollama's."""

from __future__ import annotations

from collections.abc import Callable

from fabric_client.translation.collector import CollectingFilter
from fabric_client.translation.lenient_json import Json, get_object, get_objects


class EmbeddingsTranslator(CollectingFilter):
    """Translates to the answer of ``/api/embed``, or of ``/api/embeddings`` if not ``many``."""

    def __init__(self, model: str, many: bool, clock: Callable[[], int]) -> None:
        super().__init__()
        self._model = model
        self._many = many
        self._clock = clock
        self._started = clock()

    def translate(self, document: Json) -> object:
        found = sorted(get_objects(document, "data"), key=_index)
        vectors = [row.get("embedding") for row in found]
        if not vectors or not all(isinstance(vector, list) for vector in vectors):
            return {"error": "the engine's answer has no embeddings"}
        if not self._many:
            return {"embedding": vectors[0]}
        answer = {
            "model": self._model,
            "embeddings": vectors,
            "total_duration": max(0, self._clock() - self._started),
            "load_duration": 0,
        }
        if isinstance(tokens := get_object(document, "usage").get("prompt_tokens"), int):
            answer["prompt_eval_count"] = tokens
        return answer


def _index(row: Json) -> int:
    index = row.get("index")
    return index if isinstance(index, int) else 0
