"""Weights of one name: which a request may have, and which may continue another's answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from fabric_server.dialects.errors import ApiError
from fabric_server.gateway.options import read_options, read_variant
from fabric_server.routing.variants import (
    MAX_SHOWN,
    BegunAnswer,
    Variant,
    WantedVariant,
    count_variants,
    describe_variants,
)
from protocol.messages import ModelReport

SHA, OTHER = "42182419e950" * 5 + "abcd", "9f438cb9cd58" * 5 + "0123"


def model(quantization: str = "", digest: str = "", **more: object) -> ModelReport:
    return ModelReport("tiny", digest=digest, quantization=quantization, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("headers", "report", "matches"),
    [
        ({"quant": "Q4_K_M"}, model("Q4_K_M", SHA), True),
        ({"quant": " q4_k_m "}, model("Q4_K_M"), True),
        ({"quant": "Q4_K_M"}, model("q4_k_m"), True),
        ({"quant": "Q4_K"}, model("Q4_K_M"), False),
        ({"quant": "Q4_K_M"}, model("Q4_K"), False),
        ({"quant": "Q4_K_M"}, model(), False),
        ({"digest": SHA}, model("", SHA), True),
        ({"digest": f"sha256:{SHA}"}, model("Q8_0", SHA), True),
        ({"digest": SHA.upper()}, model("", SHA), True),
        ({"digest": SHA[:12]}, model("", SHA), True),
        ({"digest": f"SHA256:{SHA[:40]}"}, model("", SHA), True),
        ({"digest": SHA[1:14]}, model("", SHA), False),
        ({"digest": SHA}, model("", SHA[:12]), False),
        ({"digest": SHA}, model("", OTHER), False),
        ({"digest": SHA}, model("Q4_K_M"), False),
        ({"quant": "Q4_K_M", "digest": SHA}, model("Q4_K_M", SHA), True),
        ({"quant": "Q4_K_M", "digest": SHA}, model("Q4_K_M", OTHER), False),
        ({"quant": "Q4_K_M", "digest": SHA}, model("Q8_0", SHA), False),
    ],
)
def test_what_a_header_asks_for_is_what_an_engine_must_tell(
    headers: dict[str, str], report: ModelReport, matches: bool
) -> None:
    sent = {f"x-fabric-{name}".encode(): value.encode() for name, value in headers.items()}
    wanted = read_options(sent).variant
    assert wanted is not None
    assert wanted.matches(report) is matches


@given(
    digest=some.text("0123456789abcdef", min_size=64, max_size=64),
    length=some.integers(12, 64),
    prefix=some.sampled_from([b"", b"sha256:", b"SHA256:"]),
    upper=some.booleans(),
)
def test_every_beginning_of_a_digest_finds_it_however_it_is_written(
    digest: str, length: int, prefix: bytes, upper: bool
) -> None:
    text = digest[:length]
    header = prefix + (text.upper() if upper else text).encode()
    wanted = read_variant({b"x-fabric-digest": header})
    assert wanted == WantedVariant("", text)
    assert wanted.matches(model("", digest))
    changed = ("0" if digest[length - 1] != "0" else "1").join((digest[: length - 1], ""))
    assert not wanted.matches(model("", changed + digest[length:]))


@given(name=some.sampled_from([b"x-fabric-quant", b"x-fabric-digest"]), value=some.binary())
def test_any_bytes_are_a_variant_or_a_bad_request(name: bytes, value: bytes) -> None:
    try:
        wanted = read_variant({name: value})
    except ApiError as error:
        assert (error.status, error.param) == (400, name.decode())
    else:
        assert wanted is not None
        assert str(wanted).isprintable()
        assert wanted.quantization or wanted.digest


GGUF = {"size": 5, "parameter_size": "8.0B"}


@pytest.mark.parametrize(
    ("begun", "other", "joins"),
    [
        # A digest decides, where one is known.
        (("ollama", model("Q4_K_M", SHA)), ("ollama", model("Q4_K_M", SHA)), True),
        (("ollama", model("Q4_K_M", SHA)), ("llama-server", model("", SHA)), True),
        (("ollama", model("Q4_K_M", SHA)), ("ollama", model("Q4_K_M", OTHER)), False),
        (("ollama", model("Q4_K_M", SHA)), ("ollama", model("Q8_0", OTHER)), False),
        (("ollama", model("Q4_K_M", SHA)), ("ollama", model("Q4_K_M")), False),
        (("ollama", model("Q4_K_M", SHA)), ("ollama", model("Q4_K_M", SHA[:12])), False),
        # Engines that tell none continue each other, as far as they agree.
        (("vllm", model()), ("vllm", model()), True),
        (("ollama", model()), ("ollama", model()), True),
        (("vllm", model()), ("llama-server", model()), False),
        (("ollama", model()), ("llama-server", model()), False),
        (("vllm", model("AWQ")), ("vllm", model("awq")), True),
        (("vllm", model("AWQ")), ("vllm", model()), False),
        (
            ("llama-server", model("Q4_K_M", **GGUF)),
            ("llama-server", model("Q4_K_M", **GGUF)),
            True,
        ),
        (("llama-server", model("Q4_K_M")), ("llama-server", model("Q8_0")), False),
        (("llama-server", model("Q4_0", size=5)), ("llama-server", model("Q4_0", size=6)), False),
        (("llama-server", model("Q4_0", size=5)), ("llama-server", model("Q4_0")), True),
        (
            ("llama-server", model("Q4_0", parameter_size="8.0B")),
            ("llama-server", model("Q4_0", parameter_size="3.0B")),
            False,
        ),
    ],
)
def test_an_answer_is_continued_by_the_same_weights_only(
    begun: tuple[str, ModelReport], other: tuple[str, ModelReport], joins: bool
) -> None:
    assert BegunAnswer(*begun).may_continue(*other) is joins
    assert BegunAnswer(*other).may_continue(*begun) is joins


def test_what_there_is_is_counted_and_bounded() -> None:
    reports = [model("Q8_0", OTHER), model("Q4_K_M", SHA), model(), model("Q4_K_M", SHA)]
    assert count_variants(reports) == [
        (Variant("Q4_K_M", SHA), 2),
        (Variant(), 1),
        (Variant("Q8_0", OTHER), 1),
    ]
    assert describe_variants(reports) == (
        "Q4_K_M (digest 42182419e950), unknown quantization (unknown digest), "
        "Q8_0 (digest 9f438cb9cd58)"
    )
    many = [model("Q4_0", f"{number:064x}") for number in range(1000)]
    assert len(count_variants(many)) == MAX_SHOWN
