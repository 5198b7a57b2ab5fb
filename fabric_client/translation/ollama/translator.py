"""Ollama's dialect, for engines that speak only OpenAI's.

Sources: https://github.com/ollama/ollama/blob/main/docs/api.md and api/types.go.

Ignored, because these engines have loaded their model for good: ``keep_alive``, the options that
tell how to load it (``options.LOADING``), ``truncate`` and ``shift`` (a prompt that is too long is
the engine's error).  A ``think`` of ``max`` is ``high``, the most that all of them know.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from fabric_client.translation import LocalReply, TranslatedRequest, TranslationError
from fabric_client.translation.lenient_json import Json, asked, text
from fabric_client.translation.local_reply import json_reply
from fabric_client.translation.ollama import conversation, media, options
from fabric_client.translation.ollama.embeddings import EmbeddingsTranslator
from fabric_client.translation.ollama.encoder import (
    NdjsonTranslator,
    OllamaEncoder,
    Say,
    in_chat,
    in_response,
)
from fabric_client.translation.ollama.timestamps import stamp

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"


class Ollama:
    """Translate requests to Ollama's four inference paths.

    Each public method is a ``RequestTranslator``.  ``kind`` is the engine's; ``clock`` returns
    nanoseconds since 1970.  Durations in answers are measured here, from the request on.
    """

    def __init__(self, kind: str, clock: Callable[[], int]) -> None:
        self._kind = kind
        self._clock = clock

    def chat(self, data: bytes) -> TranslatedRequest | LocalReply:
        """``/api/chat``"""
        body = asked(data)
        options.reject_debugging(body)
        messages = conversation.messages(body)
        if not messages:
            return self._loaded(body, in_chat)
        return self._ask_chat(body, messages, in_chat, conversation.tools(body))

    def generate(self, data: bytes) -> TranslatedRequest | LocalReply:
        """``/api/generate``: a chat of one message, because only to chats does the engine apply the
        model's template; with ``raw`` a prompt that is taken as it is."""
        body = asked(data)
        options.reject_debugging(body)
        for name, remedy in _OLLAMA_ONLY.items():
            if body.get(name):
                raise TranslationError(name, f"{name} is known to Ollama only; {remedy}")
        prompt, system = _string(body, "prompt"), _string(body, "system")
        if not prompt:
            return self._loaded(body, in_response)
        if body.get("raw"):
            return self._ask_text(body, prompt)
        content = media.parts(prompt, body.get("images"), "images")
        messages: list[Json] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": content})
        return self._ask_chat(body, messages, in_response, {})

    def embed(self, data: bytes) -> TranslatedRequest | LocalReply:
        """``/api/embed``"""
        body = asked(data)
        given = body.get("input")
        if given is None or given in ("", []):
            return json_reply({"model": body["model"], "embeddings": []})
        inputs = given if isinstance(given, list) else [given]
        if not all(isinstance(one, str) for one in inputs):
            raise TranslationError("input", "input must be a string or a list of strings")
        fields: Json = {"input": inputs}
        if (size := body.get("dimensions")) is not None:
            fields["dimensions"] = size
        if self._kind == "vllm" and body.get("truncate") is not False:
            fields["truncate_prompt_tokens"] = -1
        return self._ask_embeddings(body, fields, many=True)

    def embeddings(self, data: bytes) -> TranslatedRequest | LocalReply:
        """``/api/embeddings``, the older one"""
        body = asked(data)
        prompt = _string(body, "prompt")
        if not prompt:
            return json_reply({"embedding": []})
        return self._ask_embeddings(body, {"input": [prompt]}, many=False)

    # ── what the engine is asked ──────────────────────────────────────────────────────────────

    def _ask_chat(
        self, body: Json, messages: list[Json], say: Say, more: Json
    ) -> TranslatedRequest:
        fields: Json = {"messages": messages, **more}
        fields |= options.thinking(body) | options.shape(body)
        wanted, top = options.probabilities(body)
        if wanted:
            fields |= {"logprobs": True, "top_logprobs": top}
        return self._ask(CHAT, body, fields, say)

    def _ask_text(self, body: Json, prompt: str) -> TranslatedRequest:
        if body.get("images"):
            raise TranslationError("images", "images can't be told with raw; leave one of them out")
        fields: Json = {"prompt": prompt, **options.shape_of_text(body, self._kind)}
        wanted, top = options.probabilities(body)
        if wanted:
            fields["logprobs"] = max(top, 1)
        return self._ask(TEXT, body, fields, in_response)

    def _ask(self, path: str, body: Json, fields: Json, say: Say) -> TranslatedRequest:
        stream = options.streamed(body)
        fields = {
            "model": body["model"],
            "stream": stream,
            **({"stream_options": {"include_usage": True}} if stream else {}),
            **options.engine_fields(body, self._kind),
            **fields,
        }
        alternatives = body.get("top_logprobs") or 0
        teller = OllamaEncoder(body["model"], say, self._clock, alternatives)
        return TranslatedRequest(path, msgspec.json.encode(fields), NdjsonTranslator(teller))

    def _ask_embeddings(self, body: Json, fields: Json, *, many: bool) -> TranslatedRequest:
        fields = {"model": body["model"], "encoding_format": "float", **fields}
        answer = EmbeddingsTranslator(body["model"], many, self._clock)
        return TranslatedRequest(EMBEDDINGS, msgspec.json.encode(fields), answer)

    def _loaded(self, body: Json, say: Say) -> LocalReply:
        """Without words Ollama is asked to load the model, which here it is."""
        return json_reply(
            {
                "model": body["model"],
                "created_at": stamp(self._clock()),
                **say("", "", []),
                "done": True,
                "done_reason": "load",
            }
        )


_OLLAMA_ONLY = {
    "context": "send the conversation to /api/chat instead",
    "template": "use raw and a prompt that needs none",
    "suffix": "use raw and the model's own marks for filling in",
}


def _string(body: Json, name: str) -> str:
    if body.get(name) is not None and not isinstance(body[name], str):
        raise TranslationError(name, f"{name} must be a string")
    return text(body, name)
