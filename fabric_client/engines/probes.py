"""Facts from the engines' own documents, a reader for each kind.  Pure: JSON in; never raises.

Sources: ollama api/types.go and internal/modelref; vLLM entrypoints/openai/models; llama.cpp
tools/server; LM Studio's REST API v0 and v1.  Fields that are missing or malformed count as absent:
one odd model must not hide the others, and nothing may leave here that a server would refuse
(``protocol.messages`` sets the limits).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from fabric_client.engines.weights import (
    NONE,
    Weights,
    quantization_in_name,
    quantization_of_type,
    size_of,
    weights,
)
from fabric_client.offer.names import is_name, is_place
from protocol.messages import ModelReport

_MAX_CAPABILITIES = 32
_MAX_INTEGER = 2**63 - 1

Documents = Mapping[str, object]
"""JSON documents by the path they were fetched from."""


class Facts(NamedTuple):
    models: list[ModelReport]
    """With the names by which the engine is asked, which may be paths."""
    slots: int


class Dialect(NamedTuple):
    alive: str
    """The cheapest path whose status is 200 exactly when the engine can serve."""
    paths: tuple[str, ...]
    """Documents for ``read``: the first must exist and have the list ``holds``."""
    holds: str
    port: int | None
    """The port on which this kind listens unless configured otherwise."""
    read: Callable[[Documents], Facts]
    once: tuple[str, ...] = ()
    """Paths fetched once in an engine's life: big or slow documents that don't change."""


def detect_kind(document: object, server: str) -> str | None:
    """Return the kind of engine if its ``/v1/models`` or Server header gives it away."""
    if server.startswith("llama.cpp"):
        return "llama-server"
    owners = {_text(entry, "owned_by") for entry in _entries(document, "data")}
    if len(owners) == 1:
        return _OWNERS.get(owners.pop() or "")
    return None


_OWNERS = {"vllm": "vllm", "llamacpp": "llama-server", "organization_owner": "lm-studio"}


def is_list(document: object, key: str) -> bool:
    """Return whether this is a list of models; Go writes an empty one as null."""
    return isinstance(document, dict) and key in document and _is_rows(document[key])


def is_empty(document: object, key: str) -> bool:
    return not _entries(document, key)


def _is_rows(value: object) -> bool:
    return value is None or isinstance(value, list)


def complaint(document: object) -> str | None:
    """Return the engine's error message: ``{"error": "…"}`` or ``{"error": {"message": "…"}}``."""
    error = _get(document, "error")
    return error if isinstance(error, str) else _text(error, "message")


def without_models(documents: Documents, names: Collection[str]) -> dict[str, object]:
    """Return the documents without their rows of the models with these names."""
    if not names:
        return dict(documents)
    kept: dict[str, object] = {}
    for path, document in documents.items():
        kept[path] = document
        for key in ("data", "models"):
            if isinstance(document, dict) and isinstance(document.get(key), list):
                rows = [row for row in _entries(document, key) if not _is_of(row, names)]
                document = kept[path] = {**document, key: rows}
    return kept


def _is_of(row: object, names: Collection[str]) -> bool:
    return any(_text(row, key) in names for key in ("id", "name", "key", "model"))


# ── one reader for each kind ──────────────────────────────────────────────────────────────────


def _read_ollama(documents: Documents) -> Facts:
    running = {_text(row, "name"): row for row in _entries(documents.get("/api/ps"), "models")}

    def models() -> Iterator[ModelReport | None]:
        for row in _entries(documents.get("/api/tags"), "models"):
            name = _text(row, "name")
            if name is None or _is_cloud(name) or _text(row, "remote_host"):
                continue
            live = running.get(name)
            # The context it was loaded with counts; the model's own limit is the most it could be.
            context = _count(live, "context_length") or _count(row, "details", "context_length")
            loaded = name in running if "/api/ps" in documents else None
            yield _model(
                name,
                _count(row, "size"),
                context,
                loaded,
                _texts(row, "capabilities"),
                _ollama_weights(row),
            )

    # OLLAMA_NUM_PARALLEL is not reported; its default is 1, and Ollama queues further requests.
    return Facts(_tidy(models()), 1)


def _ollama_weights(row: object) -> Weights:
    """Read a row as Ollama has it, and llama-server beside its own."""
    return weights(
        digest=_get(row, "digest"),
        quantization=_get(row, "details", "quantization_level"),
        family=_get(row, "details", "family"),
        parameter_size=_get(row, "details", "parameter_size"),
        format=_get(row, "details", "format"),
    )


def _is_cloud(name: str) -> bool:
    """Return whether Ollama would run the model elsewhere, on the owner's bill.

    The tag is ``cloud`` (``glm-4.6:cloud``) or ends so (``gpt-oss:120b-cloud``).
    """
    _, colon, tag = name.rpartition(":")
    tag = tag.lower()
    return bool(colon) and (tag == "cloud" or (tag.endswith("-cloud") and "/" not in tag))


def _read_vllm(documents: Documents) -> Facts:
    rows = _entries(documents.get("/v1/models"), "data")
    models = (
        _model(
            _text(row, "id"), None, _count(row, "max_model_len"), True, [], _weights_by_name(row)
        )
        for row in rows
    )
    # --max-num-seqs (256 or more) is not reported, and on a home GPU the KV cache is full long
    # before.  Throughput grows almost linearly up to 16 requests (published tables of vLLM on B200,
    # 2026-03), and each answer slows beyond.  Owners with more memory set `slots`.
    return Facts(_tidy(models), 16)


def _weights_by_name(row: object) -> Weights:
    """Read what the name of a repository or folder says, which vLLM reports as ``root``."""
    names = _text(row, "root"), _text(row, "id")
    return weights(quantization=next(filter(None, map(quantization_in_name, names)), None))


def _read_llama_server(documents: Documents) -> Facts:
    props = documents.get("/props")
    per_slot = _count(props, "default_generation_settings", "n_ctx") or None
    senses = [name for name in ("vision", "audio") if _get(props, "modalities", name) is True]
    listed = {_text(row, "name"): row for row in _entries(documents.get("/v1/models"), "models")}

    def models() -> Iterator[ModelReport | None]:
        for row in _entries(documents.get("/v1/models"), "data"):
            name = _text(row, "id")
            status = _text(row, "status", "value")  # only when it serves several models
            if name is None:
                continue
            capabilities = [*_texts(listed.get(name), "capabilities"), *senses]
            context = per_slot or _count(row, "meta", "n_ctx")
            told = _llama_server_weights(row, listed.get(name), props if status is None else None)
            yield _model(
                name,
                _count(row, "meta", "size"),
                context,
                status == "loaded" if status is not None else True,
                capabilities,
                told,
            )

    return Facts(_tidy(models()), _count(props, "total_slots") or 1)


def _llama_server_weights(row: object, listed: object, props: object) -> Weights:
    """Read the file's type, which newer releases report; else the names of model and file."""
    types = _get(row, "meta", "ftype"), _get(props, "model_ftype")
    names = _text(props, "model_path"), _text(row, "id")
    found = (*map(quantization_of_type, types), *map(quantization_in_name, names))
    told = _ollama_weights(listed)
    return Weights(
        quantization=told.quantization or next(filter(None, found), ""),
        family=told.family,
        parameter_size=told.parameter_size or size_of(_count(row, "meta", "n_params")),
        format=told.format or "gguf",
    )


def _read_lm_studio(documents: Documents) -> Facts:
    native: dict[str | None, tuple[object, object]] = {}
    for row in _entries(documents.get("/api/v1/models"), "models"):
        instances = _entries(row, "loaded_instances")
        native[_text(row, "key")] = row, instances[0] if instances else None
        native |= {_text(one, "id"): (row, one) for one in instances}
    older = {_text(row, "id"): row for row in _entries(documents.get("/api/v0/models"), "data")}

    def models() -> Iterator[ModelReport | None]:
        # With just-in-time loading off, /v1/models lists only loaded models: others can't be used.
        for listed in _entries(documents.get("/v1/models"), "data"):
            name = _text(listed, "id")
            old = older.get(name)
            if name in native:
                row, instance = native[name]
                context = _count(instance, "config", "context_length")
                limit = _count(row, "max_context_length")
                size, loaded = _count(row, "size_bytes"), instance is not None
                told = weights(
                    quantization=_get(row, "quantization", "name"),
                    family=_get(row, "architecture"),
                    parameter_size=_get(row, "params_string"),
                    format=_get(row, "format"),
                )
                able = _lm_studio_capabilities(row)
                yield _model(name, size, context or limit, loaded, able, told)
            elif old is not None:
                limit = _count(old, "loaded_context_length") or _count(old, "max_context_length")
                loaded = _text(old, "state") == "loaded"
                told = weights(
                    quantization=_get(old, "quantization"),
                    family=_get(old, "arch"),
                    format=_get(old, "compatibility_type"),
                )
                yield _model(name, None, limit, loaded, _lm_studio_capabilities(old), told)
            else:
                yield _model(name, None, None, None, [])

    # "Max Concurrent Predictions" is reported for loaded models only, from 0.4 on.
    parallel = [_count(one, "config", "parallel") or 1 for _, one in native.values()]
    return Facts(_tidy(models()), max(parallel, default=1))


def _lm_studio_capabilities(row: object) -> list[str]:
    kind = _text(row, "type") or ""
    found = ["embedding" if kind.startswith("embedding") else "completion"]
    if kind == "vlm" or _get(row, "capabilities", "vision") is True:
        found.append("vision")
    if _get(row, "capabilities", "trained_for_tool_use") is True:
        found.append("tools")
    if "tool_use" in _texts(row, "capabilities"):
        found.append("tools")
    if _get(row, "capabilities", "reasoning"):
        found.append("thinking")
    return found


def _read_openai(documents: Documents) -> Facts:
    def models() -> Iterator[ModelReport | None]:
        for row in _entries(documents.get("/v1/models"), "data"):
            if _get(row, "available") is False:
                continue  # the engine is another fabric, none of whose nodes can serve it now
            sizes = (_count(row, key) for key in ("max_model_len", "context_length"))
            size = next(filter(None, sizes), None)
            yield _model(_text(row, "id"), None, size, None, [], _weights_by_name(row))

    # SGLang, TGI, TabbyAPI, LocalAI and the like batch; none reports how many.
    return Facts(_tidy(models()), 4)


DIALECTS = {
    "ollama": Dialect(
        "/api/version", ("/api/tags", "/api/ps", "/api/version"), "models", 11434, _read_ollama
    ),
    "vllm": Dialect("/health", ("/v1/models",), "data", 8000, _read_vllm, ("/openapi.json",)),
    "llama-server": Dialect("/health", ("/v1/models", "/props"), "data", 8080, _read_llama_server),
    "lm-studio": Dialect(
        "/v1/models",
        ("/v1/models", "/api/v1/models", "/api/v0/models"),
        "data",
        1234,
        _read_lm_studio,
    ),
    "openai": Dialect(
        "/v1/models", ("/v1/models",), "data", None, _read_openai, ("/openapi.json",)
    ),
}
"""By ``EngineReport.kind``."""


# ── lenient access to JSON ────────────────────────────────────────────────────────────────────


def _get(document: object, *path: str) -> object:
    for key in path:
        if not isinstance(document, dict):
            return None
        document = document.get(key)
    return document


def _text(document: object, *path: str) -> str | None:
    value = _get(document, *path)
    return value if isinstance(value, str) else None


def _texts(document: object, *path: str) -> list[str]:
    value = _get(document, *path)
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _count(document: object, *path: str) -> int | None:
    value = _get(document, *path)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MAX_INTEGER:
        return None
    return value


def _entries(document: object, key: str) -> list[object]:
    value = _get(document, key)
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def _model(
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
    return ModelReport(name, size, context or None, loaded, fit[:_MAX_CAPABILITIES], *told)


def _tidy(models: Iterable[ModelReport | None]) -> list[ModelReport]:
    by_name = {model.name: model for model in reversed(list(models)) if model is not None}
    return list(reversed(by_name.values()))
