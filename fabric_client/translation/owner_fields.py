"""Keeps what is the owner's to decide away from an engine: how it is loaded, whom it serves first,
and which machines it talks to.

A field that changes an engine for everybody is taken out of each request.  Names are compared as
the laxest parser does that reads them, Go's: escapes, upper case and two letters that fold to ASCII
make no other name, and of two fields with one name the engine gets one.

Sources: Ollama's api/types.go, LM Studio's documentation of ``ttl``, llama-server's README, vLLM's
and SGLang's protocol.py, LocalAI's core/schema.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

import msgspec
from msgspec import Raw

from fabric_client.translation import (
    LocalReply,
    RequestTranslator,
    TranslatedRequest,
    TranslationError,
)
from fabric_client.translation.lenient_json import decode_fields, decode_json

OWNERS: Mapping[str, frozenset[str]] = {
    "ollama": frozenset({"options", "keep_alive"}),
    "lm-studio": frozenset({"ttl"}),
    "llama-server": frozenset({"id_slot", "slot_id", "lora"}),
    "vllm": frozenset(
        {
            *("priority", "request_id", "kv_transfer_params", "ec_transfer_params", "vllm_xargs"),
            *("mm_processor_kwargs", "media_io_kwargs", "logits_processors"),
        }
    ),
    "sglang": frozenset(
        {
            *("priority", "rid", "session_id", "session_params", "lora_path", "ngram_corpus_id"),
            *("bootstrap_host", "bootstrap_port", "bootstrap_room", "data_parallel_rank"),
            *("routed_dp_rank", "disagg_prefill_dp_rank"),
            *("custom_logit_processor", "custom_params"),
        }
    ),
    "localai": frozenset({"backend", "model_base_name", "rope_freq_base", "rope_freq_scale"}),
}
"""Fields that change an engine for everybody, by its kind; that name another machine, a worker, a
user's request or an adapter; or that bring code.  Of Ollama's ``options`` those in
``USERS_OPTIONS`` stay."""

USERS_OPTIONS = frozenset(
    {
        *("num_predict", "num_keep", "seed", "stop", "temperature", "top_k", "top_p", "min_p"),
        *("typical_p", "tfs_z", "repeat_last_n", "repeat_penalty", "presence_penalty"),
        *("frequency_penalty", "mirostat", "mirostat_tau", "mirostat_eta", "penalize_newline"),
    }
)
"""Options of Ollama that concern one answer only.  Any other may make it load the model anew."""

_UNREADABLE = (msgspec.MsgspecError, ValueError, RecursionError)
_MAY_HAVE = {
    kind: re.compile(
        rb'"(?:' + "|".join(sorted(names)).encode() + rb')"|\\u|\xc5\xbf|\xe2\x84\xaa',
        re.IGNORECASE,
    )
    for kind, names in OWNERS.items()
}
"""One of the names, an escape, or a letter (U+017F, U+212A) that folds to ``s`` or ``k``."""


def guard(kind: str, translate: RequestTranslator, max_num_ctx: int | None) -> RequestTranslator:
    """Return a translator that also takes out what is the owner's.

    ``max_num_ctx`` is the largest context that a user of an Ollama may ask for, if any.
    """
    return partial(_guard, kind, translate, max_num_ctx)


def _guard(
    kind: str, translate: RequestTranslator, max_num_ctx: int | None, body: bytes
) -> TranslatedRequest | LocalReply:
    prepared = translate(body)
    if isinstance(prepared, LocalReply):
        return prepared
    path, body, response_filter = prepared.path, prepared.body, prepared.response_filter
    body = without_owners_fields(kind, body, max_num_ctx)
    return TranslatedRequest(path, body, response_filter)


def without_owners_fields(kind: str, body: bytes, max_num_ctx: int | None = None) -> bytes:
    """Return an engine's request without the fields that are its owner's.

    Raises ``TranslationError`` for a body that may have one, and can't be read for certain.
    """
    owners = OWNERS[kind]
    try:
        fields = decode_fields(body)
    except _UNREADABLE:
        if _MAY_HAVE[kind].search(body) is None:
            return body  # the engine reports what is wrong with it
        raise TranslationError("", "The body is no valid JSON object.") from None
    found = [name for name in fields if name.casefold() in owners]
    if not found:
        return body
    kept = {name: value for name, value in fields.items() if name not in found}
    if kind == "ollama":
        for name in found:
            if name.casefold() == "options":
                kept["options"] = _users_options(fields[name], max_num_ctx)
    return msgspec.json.encode(kept)


def _users_options(given: Raw, max_num_ctx: int | None) -> Raw:
    try:
        options = decode_json(bytes(given))
    except _UNREADABLE:
        raise TranslationError("options", "'options' can't be read.") from None
    if not isinstance(options, dict):
        return given  # null, or the engine reports what is wrong with it
    kept = {name: value for name, value in options.items() if name in USERS_OPTIONS}
    asked = options.get("num_ctx")
    if max_num_ctx is not None and isinstance(asked, int) and asked is not True and asked > 0:
        kept["num_ctx"] = min(asked, max_num_ctx)
    return Raw(msgspec.json.encode(kept))
