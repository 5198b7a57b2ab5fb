"""What users may not change of an engine that others use as well."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from fabric_client.translation import TranslatedRequest, TranslationError
from fabric_client.translation.owner_fields import OWNERS, without_owners_fields
from fabric_client.translation.paths import path_handlers

MODEL = {"model": "tiny"}
OLLAMA = (
    "/api/chat",
    "/api/generate",
    "/api/embed",
    "/api/embeddings",
    "/api/show",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
)
LOADERS = (
    *("num_ctx", "num_gpu", "num_thread", "num_batch", "use_mmap", "use_mlock", "main_gpu"),
    *("low_vram", "numa", "f16_kv", "vocab_only", "logits_all", "draft_num_predict", "NUM_CTX"),
)


def sent(path: str, body: Any, kind: str = "ollama", max_num_ctx: int | None = None) -> Any:
    """What an engine of this kind is sent."""
    handler = path_handlers(kind, [path], max_num_ctx=max_num_ctx)[path]
    assert handler is not None
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    prepared = pickle.loads(pickle.dumps(handler))(data)
    assert isinstance(prepared, TranslatedRequest)
    return json.loads(prepared.body)


@pytest.mark.parametrize("path", OLLAMA)
@pytest.mark.parametrize("name", LOADERS)
def test_what_loads_a_model_anew_does_not_reach_an_ollama(path: str, name: str) -> None:
    body = {**MODEL, "options": {name: 200, "top_k": 3}, "keep_alive": -1}
    assert sent(path, body) == {**MODEL, "options": {"top_k": 3}}


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"tiny","options":{"num_ctx":200},"options":{"top_k":3}}',
        b'{"model":"tiny","options":{"top_k":3},"Options":{"num_ctx":200,"top_k":3}}',
        b'{"model":"tiny","OPTIONS":{"num_ctx":200,"top_k":3}}',
        b'{"model":"tiny","option\\u0073":{"num_ctx":200,"top_k":3}}',
        b'{"model":"tiny","option\\u017f":{"num_ctx":200,"top_k":3}}',
        '{"model":"tiny","option\u017f":{"num_ctx":200,"top_k":3}}'.encode(),
        b'{"model":"tiny","options":{"num\\u005fctx":200,"top_k":3}}',
        b'{"model":"tiny","options":{"top_k":9,"num_ctx":1,"num_ctx":200,"top_k":3}}',
        b'{"model":"tiny","options":{"top_k":3},"Keep_Alive":0}',
        b'{"model":"tiny","options":{"top_k":3},"keep\\u005falive":0}',
        b'{"model":"tiny","options":{"top_k":3},"\\u212aeep_alive":0}',
        '{"model":"tiny","options":{"top_k":3},"\u212aeep_alive":0}'.encode(),
    ],
)
def test_no_other_spelling_reaches_an_ollama(body: bytes) -> None:
    assert sent("/api/chat", body) == {**MODEL, "options": {"top_k": 3}}


def test_options_of_one_answer_reach_an_ollama() -> None:
    options = {"num_predict": 7, "seed": 1, "temperature": 0.5, "stop": ["a"], "mirostat": 1}
    assert sent("/api/generate", {**MODEL, "options": options})["options"] == options
    assert sent("/api/generate", {**MODEL, "options": None}) == {**MODEL, "options": None}


@pytest.mark.parametrize(
    ("asked", "got"),
    [(2048, 2048), (8192, 8192), (8193, 8192), (10**12, 8192)]
    + [(bad, None) for bad in (0, -1, True, "2048", 2048.5, None, [2048])],
)
def test_a_context_is_bounded_by_what_the_owner_allows(asked: object, got: int | None) -> None:
    body = {**MODEL, "options": {"num_ctx": asked, "num_gpu": 0}}
    expected = {} if got is None else {"num_ctx": got}
    assert sent("/api/chat", body, max_num_ctx=8192)["options"] == expected


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, ns in OWNERS.items() for n in sorted(ns)])
def test_fields_that_change_an_engine_for_everybody_are_taken_out(kind: str, name: str) -> None:
    body = {**MODEL, "messages": [], name: 1}
    if name == "options":
        body[name] = {"num_ctx": 1}
    assert sent("/v1/chat/completions", body, kind).get(name) in (None, {})
    escaped = json.dumps(body).replace(name, f"\\u{ord(name[0]):04x}{name[1:]}", 1).encode()
    assert sent("/v1/completions", escaped, kind).get(name) in (None, {})


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("vllm", {"kv_transfer_params": {"do_remote_prefill": True, "remote_host": "10.0.0.1"}}),
        ("vllm", {"ec_transfer_params": {"a": {"peer_host": "10.0.0.1"}}, "request_id": "1"}),
        ("vllm", {"vllm_xargs": {"a": 1}, "mm_processor_kwargs": {"num_crops": 10**6}}),
        ("sglang", {"bootstrap_host": "10.0.0.1", "bootstrap_port": 1, "bootstrap_room": 1}),
        ("sglang", {"rid": "another's", "data_parallel_rank": 0, "lora_path": "/srv/other"}),
        ("sglang", {"custom_logit_processor": "gASV", "custom_params": {"a": 1}}),
        ("llama-server", {"lora": [{"id": 0, "scale": 9.0}]}),
    ],
    ids=["kv", "ec", "xargs", "bootstrap", "rid", "code", "lora"],
)
def test_no_user_names_another_machine_request_or_adapter(
    kind: str, fields: dict[str, Any]
) -> None:
    asked = {**MODEL, "messages": [], "temperature": 0.5}
    assert sent("/v1/chat/completions", asked | fields, kind) == asked


def test_other_bodies_pass_as_they_are() -> None:
    for body in (b'{"model":"tiny", "n":1.50}', b'{"a":NaN}', b'["keep"]', b"{"):
        assert without_owners_fields("vllm", body) is body
    inside = b'{"messages":[{"content":"\\"priority\\"","priority":1}]}'
    assert without_owners_fields("vllm", inside) is inside


@pytest.mark.parametrize("body", [b'{"priority":1,"a":NaN}', b'{"pri\\u006frity":1,"a":NaN}'])
def test_a_body_that_can_t_be_read_for_certain_is_refused(body: bytes) -> None:
    with pytest.raises(TranslationError):
        without_owners_fields("vllm", body)
