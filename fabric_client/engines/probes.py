"""Facts from the engines' own documents, a reader for each kind.  Pure: JSON in; never raises.

Sources: ollama api/types.go and internal/modelref; vLLM entrypoints/openai/models; llama.cpp
tools/server; LM Studio's REST API v0 and v1.  Fields that are missing or malformed count as absent:
one odd model must not hide the others, and nothing may leave here that a server would refuse
(``protocol.messages`` sets the limits).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from fabric_client.engines import other_kinds
from fabric_client.engines.documents import (
    Documents,
    Facts,
    count_at,
    get,
    report_of,
    rows_at,
    text_at,
    texts_at,
    tidy,
    weights_by_name,
)
from fabric_client.engines.weights import (
    Weights,
    quantization_in_name,
    quantization_of_type,
    size_of,
    weights,
)
from fabric_client.translation.paths import trim_openapi
from protocol.messages import ModelReport


class Dialect(NamedTuple):
    alive: str
    """The cheapest path whose status is 200 exactly when the engine can serve.  It is asked for
    each second, beside the first of ``paths``: some engines log each request."""
    paths: tuple[str, ...]
    """Documents for ``read``: the first must exist and have the list ``holds``."""
    holds: str
    ports: tuple[int, ...]
    """The ports on which this kind listens unless configured otherwise."""
    read: Callable[[Documents], Facts]
    once: tuple[str, ...] = ()
    """Paths fetched once in an engine's life: big or slow documents that don't change.  Of
    ``a|b``, two names of one, the second is fetched if there is no first."""


def detect_kind(document: object, server: str) -> str | None:
    """Return the kind of engine if its ``/v1/models`` or Server header gives it away."""
    for begin, kind in _SERVERS.items():
        if server.startswith(begin):
            return kind
    owners = {text_at(entry, "owned_by") for entry in rows_at(document, "data")}
    if len(owners) == 1:
        return _OWNERS.get(owners.pop() or "")
    return None


_SERVERS = {"llama.cpp": "llama-server", "KoboldCpp": "koboldcpp"}
_OWNERS = {
    "vllm": "vllm",
    "llamacpp": "llama-server",
    "organization_owner": "lm-studio",
    "sglang": "sglang",
    "koboldcpp": "koboldcpp",
}


def has_no_owners(document: object) -> bool:
    """Return whether no model has an ``owned_by``, as in LocalAI's list."""
    return not any("owned_by" in row for row in rows_at(document, "data") if isinstance(row, dict))


def owns_itself(document: object) -> bool:
    """Return whether the one model is its own owner, as in TGI's list."""
    rows = rows_at(document, "data")
    return len(rows) == 1 and text_at(rows[0], "owned_by") == text_at(rows[0], "id") != ""


def is_info_of_tgi(document: object) -> bool:
    return bool(text_at(document, "model_id") and count_at(document, "max_concurrent_requests"))


def is_version(document: object) -> bool:
    return text_at(document, "version") is not None


def listing(document: object, key: str) -> object:
    """Return what tells one list of an engine's models from another; times in it do not."""
    return [
        (
            text_at(row, "id") or text_at(row, "name"),
            text_at(row, "digest"),
            count_at(row, "max_model_len"),
            get(row, "meta", "size"),
            get(row, "meta", "n_ctx"),
            text_at(row, "status", "value"),
        )
        for row in rows_at(document, key)
    ]


def needs_key(kind: str, documents: Documents) -> bool:
    """Return whether the engine says that requests need a key, though its documents do not."""
    return kind == "koboldcpp" and get(documents.get("/api/extra/version"), "protected") is True


def is_list(document: object, key: str) -> bool:
    """Return whether this is a list of models; Go writes an empty one as null."""
    return isinstance(document, dict) and key in document and _is_rows(document[key])


def is_empty(document: object, key: str) -> bool:
    return not rows_at(document, key)


def _is_rows(value: object) -> bool:
    return value is None or isinstance(value, list)


def complaint(document: object) -> str | None:
    """Return the engine's error message: ``{"error": "…"}`` or ``{"error": {"message": "…"}}``."""
    error = get(document, "error")
    return error if isinstance(error, str) else text_at(error, "message")


def without_models(documents: Documents, names: Collection[str]) -> dict[str, object]:
    """Return the documents without their rows of the models with these names."""
    if not names:
        return dict(documents)
    kept: dict[str, object] = {}
    for path, document in documents.items():
        kept[path] = document
        for key in ("data", "models"):
            if isinstance(document, dict) and isinstance(document.get(key), list):
                rows = [row for row in rows_at(document, key) if not _is_of(row, names)]
                document = kept[path] = {**document, key: rows}
    return kept


def _is_of(row: object, names: Collection[str]) -> bool:
    return any(text_at(row, key) in names for key in ("id", "name", "key", "model"))


# ── one reader for each kind ──────────────────────────────────────────────────────────────────


def _read_ollama(documents: Documents) -> Facts:
    running = {text_at(row, "name"): row for row in rows_at(documents.get("/api/ps"), "models")}
    shows = documents.get("/api/show")

    def models() -> Iterator[ModelReport | None]:
        for row in rows_at(documents.get("/api/tags"), "models"):
            name = text_at(row, "name")
            if name is None or _is_cloud(name) or text_at(row, "remote_host"):
                continue
            live = running.get(name)
            show = get(shows, name)
            limit = count_at(row, "details", "context_length") or count_at(show, "context_length")
            # The context that the owner has set counts; otherwise the one that the model was loaded
            # with.  The model's own limit is the most that it could be.
            context = count_at(show, "num_ctx") or count_at(live, "context_length") or limit
            if context and limit:
                context = min(context, limit)
            loaded = name in running if "/api/ps" in documents else None
            yield report_of(
                name,
                count_at(row, "size"),
                context,
                loaded,
                texts_at(row, "capabilities") or texts_at(show, "capabilities"),
                _ollama_weights(row),
            )

    # OLLAMA_NUM_PARALLEL is not reported; its default is 1, and Ollama queues further requests.
    return Facts(tidy(models()), 1)


def _ollama_weights(row: object) -> Weights:
    """Read a row as Ollama has it, and llama-server beside its own."""
    return weights(
        digest=get(row, "digest"),
        quantization=get(row, "details", "quantization_level"),
        family=get(row, "details", "family"),
        parameter_size=get(row, "details", "parameter_size"),
        format=get(row, "details", "format"),
    )


def show_question(documents: Documents) -> dict[str, str]:
    """Return the models that an Ollama is to be asked about, each with a name for its answer."""
    names: dict[str, str] = {}
    for row in rows_at(documents.get("/api/tags"), "models"):
        name = text_at(row, "name")
        if name and not _is_cloud(name) and not text_at(row, "remote_host"):
            names[name] = f"{name}\n{text_at(row, 'digest') or ''}"
    return names


def _trim_show(document: object) -> dict[str, object]:
    """Return what is read of ``/api/show``, which has whole licences.

    ``parameters`` has a line for each of the Modelfile's, such as ``num_ctx   8192``.
    """
    words = [line.split() for line in (text_at(document, "parameters") or "").splitlines()]
    set_to = [line[1] for line in words if len(line) == 2 and line[0] == "num_ctx"]
    family = text_at(document, "model_info", "general.architecture") or ""
    return {
        "capabilities": texts_at(document, "capabilities"),
        "num_ctx": int(set_to[-1]) if set_to and re.fullmatch("[0-9]{1,9}", set_to[-1]) else None,
        "context_length": count_at(document, "model_info", f"{family}.context_length"),
    }


def trim(path: str, document: object) -> object:
    """Return what is read of a document that is kept."""
    match path:
        case "/openapi.json":
            return trim_openapi(document)
        case "/api/show":
            return _trim_show(document)
        case "/server_info" | "/get_server_info":
            return other_kinds.trim_server_info(document)
        case _:
            return document


def _is_cloud(name: str) -> bool:
    """Return whether Ollama would run the model elsewhere, on the owner's bill.

    The tag is ``cloud`` (``glm-4.6:cloud``) or ends so (``gpt-oss:120b-cloud``).
    """
    _, colon, tag = name.rpartition(":")
    tag = tag.lower()
    return bool(colon) and (tag == "cloud" or (tag.endswith("-cloud") and "/" not in tag))


def _read_vllm(documents: Documents) -> Facts:
    rows = rows_at(documents.get("/v1/models"), "data")
    models = (
        report_of(
            text_at(row, "id"), None, count_at(row, "max_model_len"), True, [], weights_by_name(row)
        )
        for row in rows
    )
    # --max-num-seqs (256 or more) is not reported, and on a home GPU the KV cache is full long
    # before.  Throughput grows almost linearly up to 16 requests (published tables of vLLM on B200,
    # 2026-03), and each answer slows beyond.  Owners with more memory set `slots`.
    return Facts(tidy(models), 16)


def _read_llama_server(documents: Documents) -> Facts:
    props = documents.get("/props")
    per_slot = count_at(props, "default_generation_settings", "n_ctx") or None
    senses = [name for name in ("vision", "audio") if get(props, "modalities", name) is True]
    listed = {text_at(row, "name"): row for row in rows_at(documents.get("/v1/models"), "models")}

    def models() -> Iterator[ModelReport | None]:
        for row in rows_at(documents.get("/v1/models"), "data"):
            name = text_at(row, "id")
            status = text_at(row, "status", "value")  # only when it serves several models
            if name is None:
                continue
            capabilities = [*texts_at(listed.get(name), "capabilities"), *senses]
            if get(documents.get("purpose"), EMBEDDINGS) is True:
                capabilities.append("embedding")
            if is_encoder(row):
                capabilities = [one for one in capabilities if one != "completion"]
            context = per_slot or count_at(row, "meta", "n_ctx")
            told = _llama_server_weights(row, listed.get(name), props if status is None else None)
            yield report_of(
                name,
                count_at(row, "meta", "size"),
                context,
                status == "loaded" if status is not None else True,
                capabilities,
                told,
            )

    return Facts(tidy(models()), count_at(props, "total_slots") or 1)


EMBEDDINGS = "/v1/embeddings"
PURPOSES = (EMBEDDINGS, "/v1/rerank")
"""Paths of a llama-server that it serves only if it was started for them."""
_WORD_PIECE = 3
"""``LLAMA_VOCAB_TYPE_WPM``, the vocabulary of BERT and its like."""


def is_encoder(row: object) -> bool:
    """Return whether a llama-server's model reads text only: it can write none."""
    return get(row, "meta", "vocab_type") == _WORD_PIECE


def run_of_llama_server(documents: Documents) -> str | None:
    """Return what tells one run of a llama-server from the next, as far as it says.

    None if it must not be asked for more: it sleeps, or has several models, none perhaps loaded.
    """
    props = documents.get("/props")
    several = any(
        text_at(row, "status", "value") for row in rows_at(documents.get("/v1/models"), "data")
    )
    if several or props is None or get(props, "is_sleeping") is True:
        return None
    return text_at(props, "media_marker") or ""


def _llama_server_weights(row: object, listed: object, props: object) -> Weights:
    """Read the file's type, which newer releases report; else the names of model and file."""
    types = get(row, "meta", "ftype"), get(props, "model_ftype")
    names = text_at(props, "model_path"), text_at(row, "id")
    found = (*map(quantization_of_type, types), *map(quantization_in_name, names))
    told = _ollama_weights(listed)
    return Weights(
        quantization=told.quantization or next(filter(None, found), ""),
        family=told.family,
        parameter_size=told.parameter_size or size_of(count_at(row, "meta", "n_params")),
        format=told.format or "gguf",
    )


def _read_lm_studio(documents: Documents) -> Facts:
    native: dict[str | None, tuple[object, object]] = {}
    for row in rows_at(documents.get("/api/v1/models"), "models"):
        instances = rows_at(row, "loaded_instances")
        native[text_at(row, "key")] = row, instances[0] if instances else None
        native |= {text_at(one, "id"): (row, one) for one in instances}
    older = {text_at(row, "id"): row for row in rows_at(documents.get("/api/v0/models"), "data")}

    def models() -> Iterator[ModelReport | None]:
        # With just-in-time loading off, /v1/models lists only loaded models: others can't be used.
        for listed in rows_at(documents.get("/v1/models"), "data"):
            name = text_at(listed, "id")
            old = older.get(name)
            if name in native:
                row, instance = native[name]
                context = count_at(instance, "config", "context_length")
                limit = count_at(row, "max_context_length")
                size, loaded = count_at(row, "size_bytes"), instance is not None
                told = weights(
                    quantization=get(row, "quantization", "name"),
                    family=get(row, "architecture"),
                    parameter_size=get(row, "params_string"),
                    format=get(row, "format"),
                )
                able = _lm_studio_capabilities(row)
                yield report_of(name, size, context or limit, loaded, able, told)
            elif old is not None:
                limit = count_at(old, "loaded_context_length") or count_at(
                    old, "max_context_length"
                )
                loaded = text_at(old, "state") == "loaded"
                told = weights(
                    quantization=get(old, "quantization"),
                    family=get(old, "arch"),
                    format=get(old, "compatibility_type"),
                )
                yield report_of(name, None, limit, loaded, _lm_studio_capabilities(old), told)
            else:
                yield report_of(name, None, None, None, [])

    # "Max Concurrent Predictions" is reported for loaded models only, from 0.4 on.
    parallel = [count_at(one, "config", "parallel") or 1 for _, one in native.values()]
    return Facts(tidy(models()), max(parallel, default=1))


def _lm_studio_capabilities(row: object) -> list[str]:
    kind = text_at(row, "type") or ""
    found = ["embedding" if kind.startswith("embedding") else "completion"]
    if kind == "vlm" or get(row, "capabilities", "vision") is True:
        found.append("vision")
    if get(row, "capabilities", "trained_for_tool_use") is True:
        found.append("tools")
    if "tool_use" in texts_at(row, "capabilities"):
        found.append("tools")
    if get(row, "capabilities", "reasoning"):
        found.append("thinking")
    return found


def _read_openai(documents: Documents) -> Facts:
    def models() -> Iterator[ModelReport | None]:
        for row in rows_at(documents.get("/v1/models"), "data"):
            if get(row, "available") is False:
                continue  # the engine is another fabric, none of whose nodes can serve it now
            sizes = (count_at(row, key) for key in ("max_model_len", "context_length"))
            size = next(filter(None, sizes), None)
            yield report_of(text_at(row, "id"), None, size, None, [], weights_by_name(row))

    # TabbyAPI and the like batch; none reports how many.
    return Facts(tidy(models()), 4)


DIALECTS = {
    "ollama": Dialect(
        "/api/tags", ("/api/tags", "/api/ps", "/api/version"), "models", (11434,), _read_ollama
    ),
    "vllm": Dialect("/health", ("/v1/models",), "data", (8000,), _read_vllm, ("/openapi.json",)),
    # The second port is the announced one, github.com/ggml-org/llama.cpp/pull/26508.
    "llama-server": Dialect(
        "/health", ("/v1/models", "/props"), "data", (8080, 9931), _read_llama_server
    ),
    "lm-studio": Dialect(
        "/v1/models",
        ("/v1/models", "/api/v1/models", "/api/v0/models"),
        "data",
        (1234,),
        _read_lm_studio,
    ),
    # Its /health generates a token.
    "sglang": Dialect(
        "/v1/models",
        ("/v1/models",),
        "data",
        (30000,),
        other_kinds.read_sglang,
        ("/openapi.json", "/model_info|/get_model_info", "/server_info|/get_server_info"),
    ),
    "koboldcpp": Dialect(
        "/v1/models",
        ("/v1/models", "/api/extra/version", "/api/extra/true_max_context_length"),
        "data",
        (5001,),
        other_kinds.read_koboldcpp,
    ),
    # LocalAI listens on 8080 as well.
    "localai": Dialect(
        "/readyz",
        ("/v1/models", "/v1/models/capabilities", "/system"),
        "data",
        (),
        other_kinds.read_localai,
    ),
    # Its port is 3000, as that of many programs that are none of ours, or 8080.  Its /health may
    # compute.
    "tgi": Dialect("/info", ("/v1/models", "/info"), "data", (), other_kinds.read_tgi),
    "openai": Dialect("/v1/models", ("/v1/models",), "data", (), _read_openai, ("/openapi.json",)),
}
"""By ``EngineReport.kind``."""
