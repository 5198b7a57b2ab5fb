"""What a node can be asked on each path of the public API, by the kind of its engine.

The engine speaks the path's dialect itself, or the node translates, or it can't be asked.  Nothing
that is not in ``PUBLIC_PATHS`` is ever asked of an engine.

Sources: Ollama's server/routes.go and release notes; vLLM's /openapi.json; llama-server's
README.md, tried on the one that the tests build; LM Studio's API changelog.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping

from fabric_client.translation import RequestTranslator, messages, native_filters, responses
from fabric_client.translation.lenient_json import inner, text
from fabric_client.translation.ollama import Ollama
from protocol.messages import ModelReport

_BASIC = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})
_OLLAMA = frozenset({"/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show"})
_RERANK = frozenset({"/rerank", "/v1/rerank", "/v2/rerank"})
_TOKENS = frozenset({"/tokenize", "/detokenize"})
_MESSAGES = frozenset({"/v1/messages", "/v1/messages/count_tokens"})
_AUDIO = frozenset({"/v1/audio/transcriptions", "/v1/audio/translations"})

PUBLIC_PATHS = _BASIC | _OLLAMA | _RERANK | _TOKENS | _MESSAGES | _AUDIO | {"/v1/responses"}
"""All of them with POST."""

PathHandlers = Mapping[str, RequestTranslator | None]
"""How an engine is asked on each path that it can be asked on; None: as the user asks."""


def path_handlers(
    kind: str, native: Iterable[str], clock: Callable[[], int] = time.time_ns
) -> dict[str, RequestTranslator | None]:
    """Map each public path that an engine can serve to its handler.

    ``native`` are the paths that the engine answers itself; those not in ``PUBLIC_PATHS`` are
    left out.
    """
    found: dict[str, RequestTranslator | None] = {
        path: None for path in native if path in PUBLIC_PATHS
    }
    for path, translate in _native_filters(kind).items():
        if path in found:
            found[path] = translate
    for path, (needs, translate) in _translators(kind, clock).items():
        if needs in found:
            found.setdefault(path, translate)
    return found


def _native_filters(kind: str) -> dict[str, RequestTranslator]:
    """Of paths that engines answer themselves, those where the node has a hand in it."""
    return {
        "/v1/chat/completions": native_filters.chat,
        "/v1/embeddings": native_filters.embeddings(kind),
        **{path: native_filters.messages(path) for path in _MESSAGES},
        **{path: native_filters.ollama(path) for path in _OLLAMA},
        "/api/show": native_filters.show,
    }


def _translators(kind: str, clock: Callable[[], int]) -> dict[str, tuple[str, RequestTranslator]]:
    """Path → the path that the engine must have for it, and what becomes of the question."""
    ollama = Ollama(kind, clock)
    chat = "/v1/chat/completions"
    found: dict[str, tuple[str, RequestTranslator]] = {
        "/v1/messages": (chat, messages.translate),
        "/v1/responses": (chat, responses.translate),
        "/api/chat": (chat, ollama.chat),
        "/api/generate": (chat, ollama.generate),
        "/api/embed": ("/v1/embeddings", ollama.embed),
        "/api/embeddings": ("/v1/embeddings", ollama.embeddings),
    }
    if kind == "vllm":  # the only one that counts the tokens of a conversation
        found["/v1/messages/count_tokens"] = ("/tokenize", messages.count_tokens)
    return found


# ── what engines answer themselves ────────────────────────────────────────────────────────────


def native_paths(
    kind: str, documents: Mapping[str, object], models: Iterable[ModelReport]
) -> set[str]:
    """The public paths of an engine that told these documents about itself, and these models."""
    if listed := _documented_paths(documents.get("/openapi.json")):
        return listed
    hears = any("audio" in model.capabilities for model in models)
    match kind:
        case "ollama":
            version = _version(text(documents.get("/api/version"), "version"))
            found = _BASIC | _OLLAMA
            found |= {"/v1/responses"} if version >= (0, 13, 3) else set()
            found |= {"/v1/messages"} if version >= (0, 14, 0) else set()
        case "vllm":  # one that keeps its list to itself (--disable-fastapi-docs)
            found = _BASIC | _RERANK | _TOKENS | {"/v1/responses"}
        case "llama-server":
            found = _BASIC | _TOKENS | {"/rerank", "/v1/rerank"}
            # Came with the template engine of January 2026. Its /v1/responses, of the same age, is
            # left alone: answers lack half of their fields, so that official clients stumble.
            if inner(documents.get("/props"), "chat_template_caps"):
                found |= _MESSAGES
        case "lm-studio":
            # 0.4.0 brought this list, and 0.4.1 /v1/messages; the version it does not tell.
            found = _BASIC | ({"/v1/responses"} if "/api/v1/models" in documents else set())
        case _:
            found = _BASIC
    if hears and kind in ("ollama", "llama-server"):
        found |= {"/v1/audio/transcriptions"}
    return set(found)


def trim_openapi(document: object) -> object:
    """What ``native_paths`` reads of an OpenAPI document, which may be a megabyte."""
    paths = inner(document, "paths")
    return {"paths": {path: {"post": {}} for path in PUBLIC_PATHS if "post" in inner(paths, path)}}


def _documented_paths(document: object) -> set[str]:
    """Those of FastAPI's list (vLLM, SGLang and others); none when it tells of something else."""
    found = PUBLIC_PATHS & inner(document, "paths").keys()
    return set(found) if found & (_BASIC | _RERANK | _AUDIO) else set()


def _version(told: str) -> tuple[int, ...]:
    """Of ``0.14.0-rc2`` the numbers; what is no version is older than all."""
    found = re.match(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})", told)
    return tuple(map(int, found.groups())) if found else (0, 0, 0)
