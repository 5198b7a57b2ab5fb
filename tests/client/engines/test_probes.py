"""The facts that each kind of engine gives away about itself."""

from __future__ import annotations

import aiohttp
from hypothesis import given
from hypothesis import strategies as some

from fabric_client.engines.addresses import KINDS, parse_address
from fabric_client.engines.discovery import Engine
from fabric_client.engines.probes import DIALECTS
from protocol.messages import EngineReport, ModelReport
from tests.fake_engines import (
    GIB,
    FakeEngine,
    accepts,
    by_name,
    fake_llama_server,
    fake_lm_studio,
    fake_ollama,
    fake_openai,
    fake_vllm,
    report_of,
)


async def test_ollama_tells_sizes_capabilities_and_what_is_loaded(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    report = await report_of(session, fakes, fake_ollama())
    assert (report.kind, report.healthy, report.slots) == ("ollama", True, 1)
    assert report.problem is None
    llama = by_name(report)["llama3.1:8b"]
    told = ("42182419e950", "Q4_K_M", "llama", "8.0B", "gguf")
    assert llama == ModelReport("llama3.1:8b", 4 * GIB, 8192, True, ["completion", "tools"], *told)
    nomic = by_name(report)["nomic-embed-text:latest"]
    told = ("", "", "llama", "8.0B", "gguf")
    assert nomic == ModelReport("nomic-embed-text:latest", GIB, None, False, [], *told)


async def test_models_that_ollama_computes_elsewhere_are_hidden(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    report = await report_of(session, fakes, fake_ollama())
    assert set(by_name(report)) == {"llama3.1:8b", "nomic-embed-text:latest", "cloud-watcher:7b"}


async def test_an_ollama_without_any_model_is_still_ollama(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_ollama()
    fake.answers |= {
        "/api/tags": {"models": None},
        "/v1/models": {"object": "list", "data": None},
    }
    report = await report_of(session, fakes, fake)
    assert (report.kind, report.healthy, report.models) == ("ollama", True, [])


async def test_vllm_tells_its_context_length(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    report = await report_of(session, fakes, fake_vllm())
    assert (report.kind, report.healthy, report.slots) == ("vllm", True, 16)
    assert report.models == [ModelReport("Qwen/Qwen3-8B", None, 40960, True, [])]


async def test_llama_server_tells_its_slots_and_the_context_of_each(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    report = await report_of(session, fakes, fake_llama_server())
    assert (report.kind, report.healthy, report.slots) == ("llama-server", True, 4)
    (model,) = report.models
    assert model == ModelReport(
        "tiny.Q4_K_M",
        5 * GIB,
        4096,
        True,
        ["completion", "vision"],
        quantization="Q4_K_M",
        parameter_size="8.0B",
        format="gguf",
    )


async def test_a_llama_server_with_several_models_says_which_is_loaded(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_llama_server(total_slots=None, default_generation_settings={"n_ctx": 0})
    rows = [
        {"id": "a/b.gguf", "owned_by": "llamacpp", "status": {"value": "loaded"}},
        {"id": "c", "owned_by": "llamacpp", "status": {"value": "unloaded"}},
    ]
    fake.answers["/v1/models"] = {"data": rows}
    report = await report_of(session, fakes, fake)
    assert report.slots == 1
    assert {name: model.loaded for name, model in by_name(report).items()} == {
        "b": True,
        "c": False,
    }


async def test_lm_studio_tells_what_is_loaded_and_with_how_many_at_once(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    report = await report_of(session, fakes, fake_lm_studio())
    assert (report.kind, report.healthy, report.slots) == ("lm-studio", True, 4)
    assert report.models == [
        ModelReport("google/gemma-3-12b", 8 * GIB, 8192, True, ["completion", "vision", "tools"]),
        ModelReport("text-embedding-nomic-embed-text-v1.5", 84 * 10**6, 2048, False, ["embedding"]),
    ]


async def test_an_older_lm_studio_tells_less(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    report = await report_of(session, fakes, fake_lm_studio(native=False))
    assert (report.kind, report.healthy, report.slots) == ("lm-studio", True, 1)
    assert report.models == [
        ModelReport("google/gemma-3-12b", None, 4096, True, ["completion", "vision", "tools"]),
        ModelReport("text-embedding-nomic-embed-text-v1.5", None, 2048, False, ["embedding"]),
    ]


async def test_an_lm_studio_without_models_is_told_from_other_engines(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_lm_studio()
    empty = {"object": "list", "data": []}
    fake.answers |= {"/v1/models": empty, "/api/v0/models": empty, "/api/v1/models": {"models": []}}
    assert (await report_of(session, fakes, fake)).kind == "lm-studio"


async def test_lm_studio_which_logs_unknown_paths_as_errors_is_asked_each_once_at_most(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_lm_studio(native=False)
    fakes.append(await fake.start())
    engine = Engine(session, parse_address(fake.url))
    for _ in range(3):
        await engine.probe()
        assert await engine.alive()
    unknown = [path for path in fake.asked if path not in fake.answers]
    assert unknown == ["/api/v1/models"]


async def test_any_other_engine_is_known_by_its_model_list_alone(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    report = await report_of(session, fakes, fake_openai("a", "b"))
    assert (report.kind, report.healthy, report.slots) == ("openai", True, 4)
    assert [model.name for model in report.models] == ["a", "b"]


async def test_another_fabric_s_models_that_can_t_be_used_now_are_left_out(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    rows = [{"id": "a", "available": False}, {"id": "b"}]
    report = await report_of(session, fakes, FakeEngine({"/v1/models": {"data": rows}}))
    assert [model.name for model in report.models] == ["b"]


async def test_configured_slots_win(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    assert (await report_of(session, fakes, fake_llama_server(), slots=7)).slots == 7


async def test_an_engine_on_loopback_is_called_localhost(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_ollama()
    await report_of(session, fakes, fake)
    assert fake.hosts == {f"localhost:{fake.port}"}


async def test_an_engine_under_a_path_prefix(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = FakeEngine({"/llm/v1/models": {"data": [{"id": "a"}]}})
    fakes.append(await fake.start())
    report = await Engine(session, parse_address(f"{fake.url}/llm/v1/")).probe()
    assert [model.name for model in report.models] == ["a"]


async def test_names_and_numbers_no_server_would_take_are_left_out(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_openai()
    rows: list[object] = [
        {"id": "good", "max_model_len": 2**80},
        {"id": "x" * 257},
        {"id": ""},
        {"id": "two\nlines"},
        {"id": 5},
        {"id": "good", "max_model_len": 5},
        {"id": "negative", "max_model_len": -5},
        {"id": "truth", "max_model_len": True},
        "no object",
        None,
    ]
    many = [{"id": f"m{number}"} for number in range(1000)]
    fake.answers["/v1/models"] = {"data": rows + many}
    report = await report_of(session, fakes, fake)
    assert len(report.models) == 512
    assert [model.name for model in report.models][:4] == ["good", "negative", "truth", "m0"]
    assert all(model.context_length is None for model in report.models)
    accepts(report)


_KEYS = some.sampled_from(
    [
        *("data", "models", "id", "name", "key", "owned_by", "size", "status", "value", "meta"),
        *("n_ctx", "details", "capabilities", "state", "loaded_instances", "config", "parallel"),
        *("context_length", "total_slots", "modalities", "vision", "type", "max_context_length"),
        *("digest", "quantization_level", "family", "parameter_size", "format", "quantization"),
        *("ftype", "model_ftype", "model_path", "n_params", "root", "arch", "params_string"),
    ]
)
_ANYTHING = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=8),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(_KEYS, inner, max_size=5),
    max_leaves=30,
)


def test_every_kind_that_an_address_may_name_has_its_questions() -> None:
    assert tuple(DIALECTS) == KINDS


@given(kind=some.sampled_from(sorted(DIALECTS)), answers=some.lists(_ANYTHING, min_size=3))
def test_whatever_an_engine_says_becomes_a_report_that_a_server_takes(
    kind: str, answers: list[object]
) -> None:
    dialect = DIALECTS[kind]
    facts = dialect.read(dict(zip(dialect.paths, answers, strict=False)))
    accepts(EngineReport(kind, kind, True, min(facts.slots, 4096), facts.models))
