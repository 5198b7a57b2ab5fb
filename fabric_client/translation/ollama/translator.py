"""Requests of Ollama's API, for engines that speak only OpenAI's.

Ignored, because these engines have loaded their model for good: ``keep_alive``, the options for
loading a model (``options.LOAD_OPTIONS``), ``truncate`` and ``shift`` (a prompt that is too long is
the engine's error).  A ``think`` of ``max`` is ``high``, the highest that all engines know.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from fabric_client.translation import LocalReply, TranslatedRequest, TranslationError
from fabric_client.translation.lenient_json import Json, decode_json, get_text
from fabric_client.translation.local_reply import json_reply
from fabric_client.translation.ollama import conversation, media, options
from fabric_client.translation.ollama.embeddings import EmbeddingsTranslator
from fabric_client.translation.ollama.encoder import (
    NdjsonTranslator,
    OllamaEncoder,
    PartEncoder,
    chat_fields,
    generate_fields,
)
from fabric_client.translation.ollama.timestamps import timestamp
from fabric_client.translation.validation import invalid

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"


class Ollama:
    """Translates requests to Ollama's four inference paths.

    Each public method is a ``RequestTranslator``.  ``kind`` is the engine's; ``clock`` returns
    nanoseconds since 1970.  Durations in answers are measured here, from the request on; load
    durations are not known.
    """

    def __init__(self, kind: str, clock: Callable[[], int]) -> None:
        self._kind = kind
        self._clock = clock

    def chat(self, data: bytes) -> TranslatedRequest | LocalReply:
        """Translate ``/api/chat``."""
        body = _parse_body(data)
        options.reject_debugging(body)
        messages = conversation.chat_messages(body)
        if not messages:
            return self._load_reply(body, chat_fields)
        return self._to_chat(body, messages, chat_fields, conversation.tool_fields(body))

    def generate(self, data: bytes) -> TranslatedRequest | LocalReply:
        """Translate ``/api/generate`` to a chat of one message, since engines apply the model's
        template to chats only; with ``raw`` to a completion of the prompt as it is."""
        body = _parse_body(data)
        options.reject_debugging(body)
        for name, remedy in _OLLAMA_ONLY.items():
            if body.get(name):
                raise invalid(name, f"is supported by Ollama only; {remedy}")
        prompt, system = _string(body, "prompt"), _string(body, "system")
        if not prompt:
            return self._load_reply(body, generate_fields)
        if body.get("raw"):
            return self._to_completion(body, prompt)
        content = media.content_parts(prompt, body.get("images"), "images")
        messages: list[Json] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": content})
        return self._to_chat(body, messages, generate_fields, {})

    def embed(self, data: bytes) -> TranslatedRequest | LocalReply:
        """Translate ``/api/embed``."""
        body = _parse_body(data)
        given = body.get("input")
        if given is None or given in ("", []):
            return json_reply({"model": body["model"], "embeddings": []})
        inputs = given if isinstance(given, list) else [given]
        if not all(isinstance(one, str) for one in inputs):
            raise invalid("input", "must be a string or an array of strings")
        fields: Json = {"input": inputs}
        if (size := body.get("dimensions")) is not None:
            fields["dimensions"] = size
        if self._kind == "vllm" and body.get("truncate") is not False:
            fields["truncate_prompt_tokens"] = -1
        return self._to_embeddings(body, fields, many=True)

    def embeddings(self, data: bytes) -> TranslatedRequest | LocalReply:
        """Translate ``/api/embeddings``, the older path."""
        body = _parse_body(data)
        prompt = _string(body, "prompt")
        if not prompt:
            return json_reply({"embedding": []})
        return self._to_embeddings(body, {"input": [prompt]}, many=False)

    # ── requests to the engine ────────────────────────────────────────────────────────────────

    def _to_chat(
        self, body: Json, messages: list[Json], encode_part: PartEncoder, more: Json
    ) -> TranslatedRequest:
        fields: Json = {"messages": messages, **more}
        fields |= options.thinking_fields(body) | options.format_fields(body)
        requested, top = options.requested_logprobs(body)
        if requested:
            fields |= {"logprobs": True, "top_logprobs": top}
        return self._request(CHAT, body, fields, encode_part)

    def _to_completion(self, body: Json, prompt: str) -> TranslatedRequest:
        if body.get("images"):
            raise invalid("images", "can't be used with 'raw'; leave one out")
        fields: Json = {"prompt": prompt, **options.raw_format_fields(body, self._kind)}
        requested, top = options.requested_logprobs(body)
        if requested:
            fields["logprobs"] = max(top, 1)
        return self._request(COMPLETIONS, body, fields, generate_fields)

    def _request(
        self, path: str, body: Json, fields: Json, encode_part: PartEncoder
    ) -> TranslatedRequest:
        stream = options.is_streamed(body)
        fields = {
            "model": body["model"],
            "stream": stream,
            **({"stream_options": {"include_usage": True}} if stream else {}),
            **options.sampling_fields(body, self._kind),
            **fields,
        }
        alternatives = body.get("top_logprobs") or 0
        encoder = OllamaEncoder(body["model"], encode_part, self._clock, alternatives)
        translator = NdjsonTranslator(encoder, stream=stream)
        return TranslatedRequest(path, msgspec.json.encode(fields), translator)

    def _to_embeddings(self, body: Json, fields: Json, *, many: bool) -> TranslatedRequest:
        fields = {"model": body["model"], "encoding_format": "float", **fields}
        translator = EmbeddingsTranslator(body["model"], many, self._clock)
        return TranslatedRequest(EMBEDDINGS, msgspec.json.encode(fields), translator)

    def _load_reply(self, body: Json, encode_part: PartEncoder) -> LocalReply:
        """Answer a request without a prompt, which asks Ollama to load the model: it is loaded."""
        return json_reply(
            {
                "model": body["model"],
                "created_at": timestamp(self._clock()),
                **encode_part("", "", []),
                "done": True,
                "done_reason": "load",
            }
        )


_OLLAMA_ONLY = {
    "context": "send the conversation to /api/chat instead",
    "template": "use 'raw' and a prompt that needs no template",
    "suffix": "use 'raw' and the model's own fill-in-the-middle markers",
}


def _parse_body(body: bytes) -> Json:
    """Parse a request.  Raises ``TranslationError`` unless it is an object that names a model."""
    try:
        document = decode_json(body)
    except (ValueError, RecursionError) as error:
        raise TranslationError("", f"the body is not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise TranslationError("", "the body must be a JSON object")
    if not isinstance(document.get("model"), str) or not document["model"]:
        raise invalid("model", "is required")
    return document


def _string(body: Json, name: str) -> str:
    if body.get(name) is not None and not isinstance(body[name], str):
        raise invalid(name, "must be a string")
    return get_text(body, name)
