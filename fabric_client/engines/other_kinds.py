"""Readers of SGLang, KoboldCpp, LocalAI and TGI, as ``probes`` has them for the other engines.

Sources: SGLang's docs/basic_usage/native_api.md and entrypoints/http_server.py; koboldcpp.py;
LocalAI's core/http/endpoints (openai/list.go, list_capabilities.go, localai/system.go) and CLI
reference; text-generation-inference's router/src (lib.rs, server.rs).
"""

from __future__ import annotations

from collections.abc import Iterator

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
from fabric_client.engines.weights import weights
from protocol.messages import ModelReport

_BATCH = 16
"""Slots of an engine that batches, as for vLLM."""


def read_sglang(documents: Documents) -> Facts:
    """Read ``/v1/models``, and what SGLang tells of itself."""
    model, server = documents.get("/model_info"), documents.get("/server_info")
    able = []
    if model is not None:
        able = ["completion" if get(model, "is_generation") is not False else "embedding"]
        able += [
            name
            for name, field in (
                ("vision", "has_image_understanding"),
                ("audio", "has_audio_understanding"),
            )
            if get(model, field) is True
        ]
    quantization = text_at(server, "quantization")

    def models() -> Iterator[ModelReport | None]:
        for row in rows_at(documents.get("/v1/models"), "data"):
            told = weights(quantization=quantization) if quantization else weights_by_name(row)
            context = count_at(row, "max_model_len") or count_at(server, "context_length")
            yield report_of(text_at(row, "id"), None, context, True, able, told)

    # Unless set by its owner, it is as many as its memory could hold of short requests.
    return Facts(tidy(models()), count_at(server, "max_running_requests") or _BATCH)


def trim_server_info(document: object) -> dict[str, object]:
    """Return what is read of SGLang's ``/server_info``, which has its settings and its key."""
    names = ("quantization", "context_length", "max_running_requests")
    return {name: get(document, name) for name in names}


def read_koboldcpp(documents: Documents) -> Facts:
    """Read ``/v1/models`` and what KoboldCpp can do; it answers one request after the other."""
    version = documents.get("/api/extra/version")
    context = count_at(documents.get("/api/extra/true_max_context_length"), "value")
    able = [
        name
        for name, field in (
            ("completion", "llm"),
            ("vision", "vision"),
            ("audio", "audio"),
            ("embedding", "embeddings"),
        )
        if get(version, field) is True
    ]
    rows = rows_at(documents.get("/v1/models"), "data")
    loaded = True if len(rows) == 1 else None  # more with --routermode, which changes models
    models = (
        report_of(text_at(row, "id"), None, context, loaded, able, weights_by_name(row))
        for row in rows
    )
    return Facts(tidy(models), 1)


_LOCALAI = {
    "chat": "completion",
    "completion": "completion",
    "embeddings": "embedding",
    "vision": "vision",
    "rerank": "rerank",
}


def read_localai(documents: Documents) -> Facts:
    """Read ``/v1/models``, and what newer releases tell of each model."""
    loaded = {text_at(row, "id") for row in rows_at(documents.get("/system"), "loaded_models")}
    listed = rows_at(documents.get("/v1/models/capabilities"), "data")
    told = {text_at(row, "id"): row for row in listed}

    def models() -> Iterator[ModelReport | None]:
        for row in rows_at(documents.get("/v1/models"), "data"):
            name = text_at(row, "id")
            more = told.get(name)
            able = [_LOCALAI[one] for one in texts_at(more, "capabilities") if one in _LOCALAI]
            senses = texts_at(more, "input_modalities")
            able += [out for out, one in (("vision", "image"), ("audio", "audio")) if one in senses]
            known = name in loaded if "/system" in documents else None
            yield report_of(
                name, None, count_at(more, "context_size"), known, able, weights_by_name(row)
            )

    # --parallel-requests is off unless set, and not reported: a backend answers one at a time.
    return Facts(tidy(models()), 1)


def read_tgi(documents: Documents) -> Facts:
    """Read ``/v1/models`` and ``/info``."""
    info = documents.get("/info")
    able = ["completion"]
    if text_at(info, "model_pipeline_tag") == "image-text-to-text":
        able.append("vision")
    context = count_at(info, "max_total_tokens")
    models = (
        report_of(text_at(row, "id"), None, context, True, able, weights_by_name(row))
        for row in rows_at(documents.get("/v1/models"), "data")
    )
    # Beyond max_concurrent_requests, 128 unless set, it refuses; it batches as many as fit.
    most = count_at(info, "max_concurrent_requests") or _BATCH
    return Facts(tidy(models), min(most, _BATCH))
