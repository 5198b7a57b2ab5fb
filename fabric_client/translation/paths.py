"""The paths of the public API that an engine can serve, and how, by the engine's kind.

The engine serves a path itself, or the node translates, or the path is not served.  Only paths in
``PUBLIC_PATHS`` are ever forwarded to an engine.

Sources: Ollama's server/routes.go and release notes; vLLM's /openapi.json; llama-server's
README.md, checked with the build that the tests use; LM Studio's API changelog; the others as in
``engines/other_kinds``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from fabric_client.translation import (
    RequestTranslator,
    messages,
    native_filters,
    owner_fields,
    responses,
    token_counts,
)
from fabric_client.translation.lenient_json import get_object, get_text
from fabric_client.translation.ollama import Ollama
from protocol.messages import ModelReport

_BASIC = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})
_OLLAMA = frozenset({"/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show"})
_RERANK = frozenset({"/rerank", "/v1/rerank", "/v2/rerank"})
_TOKENS = frozenset({"/tokenize", "/detokenize"})
_MESSAGES = frozenset({"/v1/messages", "/v1/messages/count_tokens"})
_RESPONSES = frozenset({"/v1/responses", "/v1/responses/input_tokens"})
_AUDIO = frozenset({"/v1/audio/transcriptions", "/v1/audio/translations", "/v1/audio/speech"})
_SCORES = frozenset({"/v1/score", "/score", "/classify", "/pooling", "/v1/moderations"})
_IMAGES = frozenset({"/v1/images/generations"})

_EMBEDDINGS = frozenset({"/v1/embeddings"})
_LLAMA_RERANK = frozenset({"/rerank", "/v1/rerank"})
_GENERATION = frozenset(
    {
        *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"),
        *("/v1/messages/count_tokens", "/v1/responses/input_tokens", "/api/chat", "/api/generate"),
    }
)
_TELL_EMBEDDING = frozenset({"sglang", "koboldcpp", "localai"})
"""Kinds whose models can't embed unless they say so."""

_INFERENCE = _BASIC | _RERANK | _AUDIO | _SCORES | _IMAGES
PUBLIC_PATHS = _INFERENCE | _OLLAMA | _TOKENS | _MESSAGES | _RESPONSES
"""All of them with POST."""

_READ_WHOLE = _MESSAGES | _RERANK | _SCORES | _IMAGES | _RESPONSES | {"/v1/audio/speech"}
"""Paths whose requests are read whole only because they may have media, see ``media_guard``."""
_REPEATED = frozenset({"/v1/completions"})
"""Paths whose requests are read whole only because an engine that refuses what the server has added
to them is asked again without."""

_TO_OLLAMA = frozenset({"/api/generate", "/api/embed", "/api/embeddings"})
"""Paths whose requests are read whole only because of what is the owner's in them."""

PathHandlers = Mapping[str, RequestTranslator | None]
"""The translator for each path that an engine can serve; None: requests pass as they are."""


def path_handlers(
    kind: str,
    native: Iterable[str],
    clock: Callable[[], int] = time.time_ns,
    *,
    max_num_ctx: int | None = None,
) -> dict[str, RequestTranslator | None]:
    """Return the handlers for an engine.

    ``native`` are the paths that the engine serves itself, see ``native_paths``; those that are
    not public are left out.  ``clock`` returns nanoseconds since 1970.  ``max_num_ctx`` is the
    largest context that a user of an Ollama may ask for, if any.
    """
    handlers: dict[str, RequestTranslator | None] = {
        path: None for path in native if path in PUBLIC_PATHS
    }
    for path, translate in _native_filters(kind).items():
        if path in handlers:
            handlers[path] = translate
    for path, (required, translate) in _translators(
        kind, clock, tokenizes=token_counts.TOKENIZE in handlers
    ).items():
        if required in handlers:
            handlers.setdefault(path, translate)
    if kind in owner_fields.OWNERS:
        for path, handler in handlers.items():
            if handler is not None:  # the others are forms, and /tokenize
                handlers[path] = owner_fields.guard(kind, handler, max_num_ctx)
    return handlers


def _native_filters(kind: str) -> dict[str, RequestTranslator]:
    """Return the handlers of paths that engines serve themselves, but not quite as they should."""
    return {
        "/v1/chat/completions": native_filters.chat,
        "/v1/embeddings": native_filters.embeddings(kind),
        "/api/chat": native_filters.ollama_chat,
        "/api/show": native_filters.show,
        **{path: native_filters.unchanged(path) for path in _READ_WHOLE | _REPEATED | _TO_OLLAMA},
    }


def _translators(
    kind: str, clock: Callable[[], int], *, tokenizes: bool
) -> dict[str, tuple[str, RequestTranslator]]:
    """Return for each path the one that the engine must serve for it, and the translator."""
    ollama = Ollama(kind, clock)
    chat = "/v1/chat/completions"
    translators: dict[str, tuple[str, RequestTranslator]] = {
        "/v1/messages": (chat, messages.translate),
        "/v1/responses": (chat, partial(responses.translate, clock=clock)),
        "/api/chat": (chat, ollama.chat),
        "/api/generate": (chat, ollama.generate),
        "/api/embed": ("/v1/embeddings", ollama.embed),
        "/api/embeddings": ("/v1/embeddings", ollama.embeddings),
    }
    prompts = {
        token_counts.MESSAGES: messages.read_prompt,
        token_counts.RESPONSES: responses.read_prompt,
    }
    return translators | token_counts.counters(kind, tokenizes, prompts)


# ── paths that engines serve themselves ───────────────────────────────────────────────────────


def native_paths(
    kind: str, documents: Mapping[str, object], models: Iterable[ModelReport]
) -> set[str]:
    """Return the public paths that an engine serves itself.

    ``documents`` are what the engine returned about itself, by path.
    """
    models = list(models)
    found = _documented_paths(documents.get("/openapi.json"))
    if not found:
        found = _paths_by_kind(kind, documents)
        audio = any("audio" in model.capabilities for model in models)
        if audio and kind in ("ollama", "llama-server"):
            found |= {"/v1/audio/transcriptions"}
    elif kind == "sglang":
        found -= _OLLAMA  # an imitation
    return found - _paths_without_purpose(kind, documents, models)


def _paths_by_kind(kind: str, documents: Mapping[str, object]) -> set[str]:
    found = _BASIC
    match kind:
        case "ollama":
            version = _version(get_text(documents.get("/api/version"), "version"))
            found = _BASIC | _OLLAMA
            found |= {"/v1/responses"} if version >= (0, 13, 3) else set()
            found |= {"/v1/messages"} if version >= (0, 14, 0) else set()
        case "vllm":  # one that hides its list of paths (--disable-fastapi-docs)
            found = _BASIC | _RERANK | _TOKENS | {"/v1/responses"}
        case "llama-server":
            found = _BASIC | _TOKENS | _LLAMA_RERANK
            # Came with the template engine of January 2026. Its /v1/responses, of the same age, is
            # not used: answers lack half of their fields, which breaks OpenAI's clients.
            if get_object(documents.get("/props"), "chat_template_caps"):
                found |= _MESSAGES
        case "lm-studio":
            # 0.4.0 brought this list, 0.4.1 /v1/messages; LM Studio does not report its version.
            found = _BASIC | ({"/v1/responses"} if "/api/v1/models" in documents else set())
        case "koboldcpp":
            version_document = documents.get("/api/extra/version")
            if isinstance(version_document, dict) and version_document.get("transcribe") is True:
                found = _BASIC | {"/v1/audio/transcriptions"}
        case "tgi":
            found = _BASIC - _EMBEDDINGS
    return set(found)


def _paths_without_purpose(
    kind: str, documents: Mapping[str, object], models: Sequence[ModelReport]
) -> set[str]:
    """Return the paths of what none of the engine's models is for, as far as they tell."""
    found: set[str] = set()
    purpose = get_object(documents, "purpose")
    for path, others in (("/v1/embeddings", _EMBEDDINGS), ("/v1/rerank", _LLAMA_RERANK)):
        if purpose.get(path) is False:
            found |= others
    if models and all(one.capabilities for one in models):
        able = {name for one in models for name in one.capabilities}
        if "embedding" in able and "completion" not in able:
            found |= _GENERATION
        if kind in _TELL_EMBEDDING and "embedding" not in able:
            found |= _EMBEDDINGS
    return found


def trim_openapi(document: object) -> object:
    """Return only what ``native_paths`` reads of an OpenAPI document, which may be a megabyte."""
    paths = get_object(document, "paths")
    return {
        "paths": {path: {"post": {}} for path in PUBLIC_PATHS if "post" in get_object(paths, path)}
    }


def _documented_paths(document: object) -> set[str]:
    """Return the public paths in FastAPI's list (vLLM, SGLang and others).

    Empty unless one of them is for inference: then the document describes something else.
    """
    found = PUBLIC_PATHS & get_object(document, "paths").keys()
    return set(found) if found & _INFERENCE else set()


def _version(text: str) -> tuple[int, ...]:
    """Parse the numbers of a version such as ``0.14.0-rc2``; (0, 0, 0) if it is none."""
    found = re.match(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})", text)
    return tuple(map(int, found.groups())) if found else (0, 0, 0)
