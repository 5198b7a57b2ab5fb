"""What each kind of engine tells of its weights, and what never leaves the node."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from fabric_client.engines.probes import DIALECTS
from fabric_client.engines.weights import (
    quantization_in_name,
    quantization_of_type,
    size_of,
    weights,
)
from protocol import messages
from protocol.messages import EngineReport, ModelReport
from protocol.weights import is_label, parse_digest
from tests.fake_engines import accepts

SHA = "42182419e950" * 5 + "abcd"


def read(kind: str, **documents: Any) -> ModelReport:
    """The report of the only model; documents by the last part of their path."""
    dialect = DIALECTS[kind]
    by_path: dict[str, Any] = {}
    for path in dialect.paths:
        for name in (path, path.rpartition("/")[2]):
            if name in documents:
                by_path[path] = documents[name]
    [model] = dialect.read(by_path).models
    accepts(EngineReport(kind, kind, True, 1, [model]))
    return model


def ollama(**row: Any) -> ModelReport:
    return read("ollama", tags={"models": [{"name": "tiny", **row}]})


def told(model: ModelReport) -> tuple[str, str, str, str, str]:
    return model.digest, model.quantization, model.family, model.parameter_size, model.format


def test_ollama_tells_all_of_it() -> None:
    details = {
        "format": "gguf",
        "family": "llama",
        "parameter_size": "8.0B",
        "quantization_level": "Q4_K_M",
    }
    for digest in (SHA, f"sha256:{SHA}", SHA.upper()):
        assert told(ollama(digest=digest, details=details)) == (
            *(SHA, "Q4_K_M", "llama", "8.0B", "gguf"),
        )
    details["quantization_level"] = "unknown"
    assert ollama(details=details).quantization == ""


HOSTILE: list[object] = [
    *(None, 7, 1.5, True, [], {}, [SHA], {"sha256": SHA}, "", " ", "x" * 10 * 2**20),
    *("a" * 11, "a" * 65, "sha256:", f"sha512:{SHA}", f"{SHA}\n", f" {SHA}", f"{SHA}\x00"),
    *("\x1b[2J" + SHA, "\u202e" + SHA, "/home/joe/models/" + SHA, "..\\" + SHA, "\ud800" * 12),
    *("ａ" * 12, "١" * 12, "nul\x00l", "Q4\r\nX: y", "<script>", "a b", "Q4_K_M/../x", "é"),
]


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value)[:24])
def test_what_is_no_digest_and_no_label_is_not_told(value: object) -> None:
    model = ollama(digest=value)
    assert model == ModelReport("tiny")
    names = ("quantization_level", "family", "parameter_size", "format")
    kept = told(ollama(details=dict.fromkeys(names, value)))[1:]
    fine = isinstance(value, str) and is_label(value)
    assert kept == ((value,) * 4 if fine else ("",) * 4)
    assert ollama(details=value) == ModelReport("tiny")
    assert read("vllm", models={"data": [{"id": "m", "root": value}]}) == ModelReport(
        "m", loaded=True
    )
    row = {"id": "m", "meta": {"ftype": value, "n_params": value if value != 7 else None}}
    props = {"model_ftype": value, "model_path": value}
    assert told(read("llama-server", models={"data": [row]}, props=props))[0] == ""
    lm_studio = read(
        "lm-studio",
        **{
            "/v1/models": {"data": [{"id": "m"}]},
            "/api/v1/models": {"models": [{"key": "m", "quantization": {"name": value}}]},
        },
    )
    assert lm_studio.quantization == (value if fine else "")


@pytest.mark.parametrize(
    ("ftype", "expected"),
    [
        ("Q4_K - Medium", "Q4_K_M"),
        ("Q3_K - Small", "Q3_K_S"),
        ("Q3_K - Large", "Q3_K_L"),
        ("Q2_K - Medium", "Q2_K"),
        ("(guessed) Q8_0", "Q8_0"),
        ("all F32", "F32"),
        ("F16", "F16"),
        ("IQ2_XXS - 2.0625 bpw", "IQ2_XXS"),
        ("IQ3_S mix - 3.66 bpw", "IQ3_M"),
        ("TQ1_0 - 1.69 bpw ternary", "TQ1_0"),
        ("MXFP4 MoE", "MXFP4"),
        ("unknown, may not work", ""),
        ("/models/Q4_0", ""),
        ("", ""),
        (15, ""),
    ],
)
def test_llama_server_tells_its_files_type_in_words_of_its_own(ftype: Any, expected: str) -> None:
    assert quantization_of_type(ftype) == expected
    row = {"id": "tiny", "meta": {"ftype": ftype, "n_params": 8_030_261_312}}
    model = read("llama-server", models={"data": [row]})
    assert told(model) == ("", expected, "", "8.0B", "gguf")
    model = read("llama-server", models={"data": [{"id": "tiny"}]}, props={"model_ftype": ftype})
    assert model.quantization == expected


def test_an_older_llama_server_tells_it_by_the_names_of_its_file() -> None:
    props = {"model_path": "/home/joe/Q8_0/secret-Q4_K_M.gguf", "model_alias": "tiny"}
    model = read("llama-server", models={"data": [{"id": "tiny"}]}, props=props)
    assert told(model) == ("", "Q4_K_M", "", "", "gguf")
    sent = messages.encode(model)
    assert b"joe" not in sent
    assert b"secret" not in sent
    several = [{"id": "org/gemma-GGUF:Q6_K", "status": {"value": "loaded"}}]
    assert read("llama-server", models={"data": several}, props=props).quantization == "Q6_K"


@pytest.mark.parametrize(
    ("root", "expected"),
    [
        ("Qwen/Qwen3-8B", ""),
        ("Qwen/Qwen3-8B-FP8", "FP8"),
        ("/home/joe/models/Qwen3-8B-AWQ", "AWQ"),
        ("/home/joe/models/Qwen3-8B-AWQ/", "AWQ"),
        ("/srv/GPTQ/Qwen3-8B", ""),
        ("Qwen2.5-7B-Instruct-GPTQ-Int4", "GPTQ-INT4"),
        (r"C:\models\tiny.Q8_0.gguf", "Q8_0"),
        ("nvidia/Llama-NVFP4", "NVFP4"),
        ("mlx-community/Llama-3-4bit", "4BIT"),
        ("Model-UD-Q4_K_XL-00001-of-00002.gguf", "Q4_K_XL"),
        ("FAQ1_bot", ""),
    ],
)
def test_vllm_tells_it_by_the_name_of_what_it_has_loaded(root: str, expected: str) -> None:
    model = read("vllm", models={"data": [{"id": "qwen", "root": root}]})
    assert told(model) == ("", expected, "", "", "")
    assert b"joe" not in messages.encode(model)
    assert quantization_in_name(root) == expected


def test_both_releases_of_lm_studio_tell_it() -> None:
    listed = {"data": [{"id": "m"}]}
    row = {
        "key": "m",
        "architecture": "gemma3",
        "quantization": {"name": "Q4_0", "bits_per_weight": 4},
        "params_string": "12B",
        "format": "gguf",
    }
    newer = read("lm-studio", **{"/v1/models": listed, "/api/v1/models": {"models": [row]}})
    assert told(newer) == ("", "Q4_0", "gemma3", "12B", "gguf")
    row = {"id": "m", "arch": "qwen2_vl", "compatibility_type": "mlx", "quantization": "4bit"}
    older = read("lm-studio", **{"/v1/models": listed, "/api/v0/models": {"data": [row]}})
    assert told(older) == ("", "4bit", "qwen2_vl", "", "mlx")


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        *((None, ""), (0, ""), (999, "999"), (4_000, "4K"), (137_000_000, "137M")),
        *((1_500_000_000, "1.5B"), (671_026_419_200, "671.0B"), (2**63 - 1, "9223372036.9B")),
    ],
)
def test_numbers_of_parameters_are_written_as_ollama_does(
    parameters: int | None, expected: str
) -> None:
    assert size_of(parameters) == expected


@given(some.text() | some.binary().map(bytes.hex))
def test_whatever_is_taken_can_be_sent(text: str) -> None:
    found = weights(digest=text, quantization=text, family=text, parameter_size=text, format=text)
    accepts(EngineReport("e", "openai", True, 1, [ModelReport("m", None, None, None, [], *found)]))
    for quantization in (quantization_in_name(text), quantization_of_type(text)):
        accepts(EngineReport("e", "openai", True, 1, [ModelReport("m", quantization=quantization)]))
    assert parse_digest(text) in ("", text.removeprefix("sha256:").lower())
