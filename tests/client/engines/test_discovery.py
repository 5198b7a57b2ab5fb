"""Finding engines and reading what they say.

The engines here are fakes: scripted HTTP servers that answer as Ollama, vLLM, llama-server and LM
Studio are documented to.  What a real llama-server says is tested where one is built.
"""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, Self

import aiohttp
import msgspec
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as some

from fabric_client.engines.addresses import AddressError, parse_address
from fabric_client.engines.discovery import Engine, discover
from fabric_client.engines.probes import DIALECTS
from fabric_client.engines.watcher import Watcher, loaded_models
from protocol import messages
from protocol.messages import EngineReport, ModelReport

GIB = 2**30


class FakeEngine:
    """A scripted server, no engine: answers each path as told, and remembers what was asked."""

    def __init__(
        self,
        answers: Mapping[str, object],
        *,
        server: str = "",
        otherwise: tuple[int, object] = (404, "404 page not found"),
    ) -> None:
        self.answers = dict(answers)
        self.otherwise = otherwise
        self.server = server
        self.asked: list[str] = []
        self.hosts: set[str] = set()
        self.port = 0
        self.hang = False
        self._runner: web.AppRunner | None = None

    async def start(self, tls: ssl.SSLContext | None = None) -> Self:
        """Again after ``stop``: on the port it had."""
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=tls).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        self.hosts.add(request.headers["Host"])
        if self.hang:
            await asyncio.Event().wait()
        answer = self.answers.get(request.path, self.otherwise)
        status, body = answer if isinstance(answer, tuple) else (200, answer)
        headers = {"Server": self.server} if self.server else {}
        if isinstance(body, web.Response):
            return body
        if isinstance(body, str | bytes):
            body = body.encode() if isinstance(body, str) else body
            return web.Response(status=status, body=body, headers=headers)
        return web.json_response(body, status=status, headers=headers)


def fake_ollama() -> FakeEngine:
    details = {"format": "gguf", "family": "llama", "parameter_size": "8.0B"}
    tags = [
        {
            "name": "llama3.1:8b",
            "model": "llama3.1:8b",
            "size": 4 * GIB,
            "digest": "42182419e950",
            "details": {**details, "context_length": 131072},
            "capabilities": ["completion", "tools"],
        },
        {"name": "nomic-embed-text:latest", "size": GIB, "details": details},
        {"name": "glm-4.6:cloud", "size": 300, "details": details},
        {"name": "gpt-oss:120b-cloud", "size": 300, "details": details},
        {
            "name": "renamed:latest",
            "size": 300,
            "remote_model": "gpt-oss:120b",
            "remote_host": "https://ollama.com:443",
        },
        {"name": "cloud-watcher:7b", "size": GIB, "details": details},
    ]
    openai = [{"id": row["name"], "object": "model", "owned_by": "library"} for row in tags]
    return FakeEngine(
        {
            "/api/version": {"version": "0.13.3"},
            "/api/tags": {"models": tags},
            "/api/ps": {"models": [{"name": "llama3.1:8b", "context_length": 8192}]},
            "/v1/models": {"object": "list", "data": openai},
        }
    )


def fake_vllm() -> FakeEngine:
    model = {
        "id": "Qwen/Qwen3-8B",
        "object": "model",
        "owned_by": "vllm",
        "root": "Qwen/Qwen3-8B",
        "parent": None,
        "max_model_len": 40960,
    }
    return FakeEngine(
        {
            "/health": "",
            "/version": {"version": "0.11.0"},
            "/v1/models": {"object": "list", "data": [model]},
        },
        server="uvicorn",
        otherwise=(404, {"detail": "Not Found"}),
    )


def fake_llama_server(**props: object) -> FakeEngine:
    model = {
        "id": "/home/joe/models/tiny.Q4_K_M.gguf",
        "object": "model",
        "owned_by": "llamacpp",
        "meta": {"n_ctx_train": 131072, "n_params": 8 * 10**9, "size": 5 * GIB},
    }
    ollama_like = {"name": model["id"], "capabilities": ["completion"]}
    return FakeEngine(
        {
            "/health": {"status": "ok"},
            "/v1/models": {"object": "list", "models": [ollama_like], "data": [model]},
            "/props": {
                "total_slots": 4,
                "default_generation_settings": {"n_ctx": 4096},
                "modalities": {"vision": True, "audio": False},
                **props,
            },
        },
        server="llama.cpp",
    )


LOADING = (503, {"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}})


def fake_lm_studio(*, native: bool = True) -> FakeEngine:
    names = ["google/gemma-3-12b", "text-embedding-nomic-embed-text-v1.5"]
    listed = [{"id": name, "object": "model", "owned_by": "organization_owner"} for name in names]
    gemma = {
        "type": "llm",
        "key": "google/gemma-3-12b",
        "size_bytes": 8 * GIB,
        "loaded_instances": [
            {"id": "google/gemma-3-12b", "config": {"context_length": 8192, "parallel": 4}}
        ],
        "max_context_length": 131072,
        "capabilities": {"vision": True, "trained_for_tool_use": True},
    }
    nomic = {
        "type": "embedding",
        "key": "text-embedding-nomic-embed-text-v1.5",
        "size_bytes": 84 * 10**6,
        "loaded_instances": [],
        "max_context_length": 2048,
    }
    older = [
        {
            "id": "google/gemma-3-12b",
            "type": "vlm",
            "state": "loaded",
            "max_context_length": 131072,
            "loaded_context_length": 4096,
            "capabilities": ["tool_use"],
        },
        {
            "id": "text-embedding-nomic-embed-text-v1.5",
            "type": "embeddings",
            "state": "not-loaded",
            "max_context_length": 2048,
        },
    ]
    answers: dict[str, object] = {
        "/v1/models": {"object": "list", "data": listed},
        "/api/v0/models": {"object": "list", "data": older},
    }
    if native:
        answers["/api/v1/models"] = {"models": [gemma, nomic]}
    # It answers whatever it does not know with 200 and this.
    return FakeEngine(answers, otherwise=(200, {"error": "Unexpected endpoint or method."}))


def fake_openai(*names: str) -> FakeEngine:
    rows = [{"id": name, "object": "model", "owned_by": "somebody"} for name in names]
    return FakeEngine({"/v1/models": {"object": "list", "data": rows}})


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def fakes() -> AsyncIterator[list[FakeEngine]]:
    """Those put in here are stopped at the end."""
    started: list[FakeEngine] = []
    yield started
    for fake in started:
        await fake.stop()


async def report_of(
    session: aiohttp.ClientSession, fakes: list[FakeEngine], fake: FakeEngine, **options: Any
) -> EngineReport:
    fakes.append(await fake.start())
    return await Engine(session, parse_address(fake.url), **options).probe()


def by_name(report: EngineReport) -> dict[str, ModelReport]:
    return {model.name: model for model in report.models}


# ── what each kind says ───────────────────────────────────────────────────────────────────────


async def test_ollama_tells_sizes_capabilities_and_what_is_loaded(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    report = await report_of(session, fakes, fake_ollama())
    assert (report.kind, report.healthy, report.slots) == ("ollama", True, 1)
    assert report.problem is None
    llama = by_name(report)["llama3.1:8b"]
    assert llama == ModelReport("llama3.1:8b", 4 * GIB, 8192, True, ["completion", "tools"])
    nomic = by_name(report)["nomic-embed-text:latest"]
    assert nomic == ModelReport("nomic-embed-text:latest", GIB, None, False, [])


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
    assert model == ModelReport("tiny.Q4_K_M.gguf", 5 * GIB, 4096, True, ["completion", "vision"])


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
        "a/b.gguf": True,
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


# ── engines that are not well ─────────────────────────────────────────────────────────────────


async def test_nothing_listening_is_said_not_raised(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = await fake_openai("a").start()
    await fake.stop()
    engine = Engine(session, parse_address(f"ollama={fake.url}"))
    report = await engine.probe()
    assert (report.kind, report.healthy, report.slots, report.models) == ("ollama", False, 0, [])
    assert report.problem == f"Nothing listens at {fake.url}: is the engine running?"
    assert not await engine.alive()


async def test_a_host_that_does_not_exist_is_said_not_raised(
    session: aiohttp.ClientSession,
) -> None:
    report = await Engine(session, parse_address("http://engine.invalid:11434")).probe()
    assert not report.healthy
    assert report.problem is not None
    assert "can't be reached" in report.problem


async def test_a_llama_server_that_still_loads_says_so_and_then_serves(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_llama_server()
    ready = dict(fake.answers)
    fake.answers = dict.fromkeys(ready, LOADING)
    fakes.append(await fake.start())
    engine = Engine(session, parse_address(fake.url))
    report = await engine.probe()
    assert (report.kind, report.healthy) == ("llama-server", False)
    assert report.problem == f"{fake.url} answers 503: Loading model."
    assert not await engine.alive()
    fake.answers = ready
    assert await engine.alive()
    assert (await engine.probe()).healthy


async def test_an_engine_that_dies_keeps_its_models_so_that_they_are_known(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = await fake_ollama().start()
    engine = Engine(session, parse_address(fake.url))
    alive = await engine.probe()
    await fake.stop()
    dead = await engine.probe()
    assert not dead.healthy
    assert dead.slots == 0
    assert dead.models == alive.models
    assert loaded_models([alive]) == ["llama3.1:8b"]
    assert loaded_models([dead]) == []
    fakes.append(await fake.start())
    assert await engine.probe() == alive


async def test_one_late_answer_is_forgiven_and_a_second_is_not(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_openai("a")
    fakes.append(await fake.start())
    engine = Engine(session, parse_address(fake.url), timeouts=0.1)
    await engine.probe()
    fake.hang = True
    assert (await engine.probe()).healthy
    report = await engine.probe()
    assert not report.healthy
    assert report.problem == f"{fake.url} did not answer in time."
    fake.hang = False
    assert (await engine.probe()).healthy


async def test_an_engine_with_a_request_of_ours_running_is_busy_rather_than_dead(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_openai("a")
    fakes.append(await fake.start())
    engine = Engine(session, parse_address(fake.url), timeouts=0.05)
    await engine.probe()
    fake.hang = True
    engine.active = 1
    for _ in range(3):
        assert await engine.alive()
        assert (await engine.probe()).healthy
    engine.active = 0
    assert not await engine.alive()
    assert not (await engine.probe()).healthy


@pytest.mark.parametrize("status", [401, 403])
async def test_an_engine_that_wants_a_key_is_explained(
    session: aiohttp.ClientSession, fakes: list[FakeEngine], status: int
) -> None:
    fake = FakeEngine({}, otherwise=(status, {"error": {"message": "Invalid API Key"}}))
    report = await report_of(session, fakes, fake)
    assert not report.healthy
    assert report.problem is not None
    assert f"wants an API key ({status}: Invalid API Key)" in report.problem


async def test_a_redirect_is_not_followed(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    elsewhere = fake_openai("stolen")
    fakes.append(await elsewhere.start())
    away = web.Response(status=307, headers={"Location": f"{elsewhere.url}/v1/models"})
    report = await report_of(session, fakes, FakeEngine({"/v1/models": away}))
    assert not report.healthy
    assert elsewhere.asked == []


async def test_an_answer_without_end_is_cut_off(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = FakeEngine({"/v1/models": b'{"data": [' + b" " * (5 * 2**20) + b"]}"})
    report = await report_of(session, fakes, fake)
    assert report.problem is not None
    assert "more than 4194304 bytes" in report.problem


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>It works!</html>",
        b"\xff\xfe\x00",
        b'{"data": 5}',
        b'{"data": {}}',
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"data": [' + b"9" * 10_000,
    ],
)
async def test_what_is_no_model_list_is_no_engine(
    session: aiohttp.ClientSession, fakes: list[FakeEngine], body: bytes
) -> None:
    fake = FakeEngine({}, otherwise=(200, body))
    report = await report_of(session, fakes, fake)
    assert not report.healthy
    assert report.problem == f"What answers at {fake.url} is no inference engine (200)."
    assert await discover(session, [fake.port]) == []


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-OpenSSH_9.9\r\n", b"\x00" * 64, b"HTTP/1.1 200"])
async def test_what_is_no_http_is_no_engine(session: aiohttp.ClientSession, said: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        report = await Engine(session, parse_address(f"127.0.0.1:{port}")).probe()
    assert not report.healthy
    assert report.problem is not None
    assert "gave no answer" in report.problem


async def test_another_kind_of_engine_on_the_same_port_is_noticed(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    first = await fake_vllm().start()
    engine = Engine(session, parse_address(first.url))
    assert (await engine.probe()).kind == "vllm"
    await first.stop()
    assert not (await engine.probe()).healthy
    second = fake_ollama()
    second.port = first.port
    fakes.append(await second.start())
    assert await engine.alive()
    assert (await engine.probe()).kind == "ollama"


async def test_another_kind_that_comes_unnoticed_is_noticed_by_what_it_says(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_ollama()
    await report_of(session, fakes, fake)
    engine = Engine(session, parse_address(fake.url))
    await engine.probe()
    fake.answers = fake_vllm().answers
    assert (await engine.probe()).kind == "vllm"


async def test_a_kind_that_was_given_is_not_doubted(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_vllm()
    fakes.append(await fake.start())
    report = await Engine(session, parse_address(f"ollama={fake.url}")).probe()
    assert (report.kind, report.healthy) == ("ollama", False)
    assert report.problem == f"What answers at {fake.url} is no ollama (404)."


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


def accepts(report: EngineReport) -> None:
    """A server would take this report."""
    sent = messages.encode(messages.Engines([report]))
    assert messages.decoder(messages.Engines).decode(sent).engines == [report]


_KEYS = some.sampled_from(
    [
        *("data", "models", "id", "name", "key", "owned_by", "size", "status", "value", "meta"),
        *("n_ctx", "details", "capabilities", "state", "loaded_instances", "config", "parallel"),
        *("context_length", "total_slots", "modalities", "vision", "type", "max_context_length"),
    ]
)
_ANYTHING = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=8),
    lambda inner: some.lists(inner, max_size=4) | some.dictionaries(_KEYS, inner, max_size=5),
    max_leaves=30,
)


@given(kind=some.sampled_from(sorted(DIALECTS)), answers=some.lists(_ANYTHING, min_size=3))
def test_whatever_an_engine_says_becomes_a_report_that_a_server_takes(
    kind: str, answers: list[object]
) -> None:
    dialect = DIALECTS[kind]
    facts = dialect.read(dict(zip(dialect.asks, answers, strict=False)))
    accepts(EngineReport(kind, kind, True, min(facts.slots, 4096), facts.models))


# ── https ─────────────────────────────────────────────────────────────────────────────────────


def self_signed(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "engine")])
    now = datetime.datetime.now(datetime.UTC)
    here = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([here]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "engine.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return file


async def test_an_engine_behind_https_must_have_a_trusted_certificate(
    session: aiohttp.ClientSession, fakes: list[FakeEngine], tmp_path: Path
) -> None:
    file = self_signed(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(file)
    fake = fake_openai("a")
    fakes.append(await fake.start(tls))
    address = parse_address(f"https://127.0.0.1:{fake.port}")
    report = await Engine(session, address).probe()
    assert report.problem is not None
    assert "no trusted certificate" in report.problem
    trusting = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=str(file)))
    async with aiohttp.ClientSession(connector=trusting) as other:
        assert (await Engine(other, address).probe()).healthy


# ── addresses ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "url", "host", "kind"),
    [
        ("http://localhost:11434", "http://localhost:11434", "localhost:11434", None),
        ("http://127.0.0.1:8080/", "http://127.0.0.1:8080", "localhost:8080", None),
        ("localhost:11434", "http://localhost:11434", "localhost:11434", None),
        ("http://host:1234/v1", "http://host:1234", "host:1234", None),
        ("http://host:1234/v1/", "http://host:1234", "host:1234", None),
        ("https://host/llm/v1", "https://host/llm", "host", None),
        ("vllm=http://10.0.0.5:8000", "http://10.0.0.5:8000", "10.0.0.5:8000", "vllm"),
        ("lm-studio=host:1234", "http://host:1234", "host:1234", "lm-studio"),
        ("http://[::1]:8080", "http://[::1]:8080", "localhost:8080", None),
        ("http://[fd00::5]:8080", "http://[fd00::5]:8080", "[fd00::5]:8080", None),
        ("0.0.0.0:11434", "http://127.0.0.1:11434", "localhost:11434", None),
        ("http://[::]:8080", "http://[::1]:8080", "localhost:8080", None),
        ("  http://HOST:1  ", "http://host:1", "host:1", None),
    ],
)
def test_an_address_may_be_written_in_several_ways(
    text: str, url: str, host: str, kind: str | None
) -> None:
    assert tuple(parse_address(text)) == (url, host, kind)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "names no host"),
        ("11434", "names no host"),
        ("http://", "names no host"),
        ("http:/localhost:11434", "names no host"),
        ("http://local host:1", "names no host"),
        ("ftp://localhost", "neither http nor https"),
        ("unix:///run/engine.sock", "neither http nor https"),
        ("http://localhost:99999", "is no engine address"),
        ("http://localhost:abc", "is no engine address"),
        ("http://localhost:0", "names no host"),
        ("http://[::1", "is no engine address"),
        ("http://localhost/v1/chat/completions", "that of one endpoint"),
        ("http://joe:hunter2@localhost", "only a host, port and path prefix"),
        ("http://localhost/?key=hunter2", "only a host, port and path prefix"),
        ("llama=http://localhost", "'llama' is no kind of engine"),
    ],
)
def test_nonsense_addresses_are_explained(text: str, says: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_address(text)
    assert says in str(caught.value)
    assert "hunter2" not in str(caught.value)


# ── the watcher ───────────────────────────────────────────────────────────────────────────────


async def test_all_engines_on_the_usual_ports_are_found(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    made = (fake_ollama(), fake_vllm(), fake_llama_server(), fake_lm_studio())
    for fake in made:
        fakes.append(await fake.start())
    stopped = await fake_openai("gone").start()
    await stopped.stop()
    watcher = Watcher(session, ports=[*(fake.port for fake in made), stopped.port])
    reports = await watcher.refresh()
    assert [one.name for one in reports] == ["ollama", "vllm", "llama-server", "lm-studio"]
    assert all(one.healthy for one in reports)
    for one in reports:
        accepts(one)
        assert watcher.engine(one.name) is not None
    assert watcher.engine("nobody") is None


async def test_two_engines_of_one_kind_have_two_names_and_both_report_a_shared_model(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    for _ in range(2):
        fakes.append(await fake_ollama().start())
    watcher = Watcher(session, [parse_address(fake.url) for fake in fakes], discover=False)
    first, second = await watcher.refresh()
    assert (first.name, second.name) == ("ollama", "ollama-2")
    assert by_name(first)["llama3.1:8b"] == by_name(second)["llama3.1:8b"]
    urls = [watcher.engine(name).url for name in ("ollama", "ollama-2")]  # type: ignore[union-attr]
    assert urls == [fake.url for fake in fakes]


async def test_an_engine_that_is_both_given_and_found_is_one_engine(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = await fake_ollama().start()
    fakes.append(fake)
    given_twice = [f"http://localhost:{fake.port}", f"http://127.0.0.1:{fake.port}/v1"]
    watcher = Watcher(session, map(parse_address, given_twice), ports=[fake.port])
    assert [one.name for one in await watcher.refresh()] == ["ollama"]


async def test_the_list_is_told_at_once_and_whenever_it_changes(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_ollama()
    fakes.append(await fake.start())
    watcher = Watcher(session, [parse_address(fake.url)], discover=False, pulse=0.02, refresh=0.02)
    async with asyncio.timeout(10), aclosing(watcher.watch()) as told:
        (first,) = await anext(told)
        assert first.healthy
        fake.answers["/api/tags"] = {"models": [{"name": "new:latest"}]}
        (second,) = await anext(told)
        assert [model.name for model in second.models] == ["new:latest"]


async def test_an_engine_that_dies_and_returns_is_noticed_by_the_pulse_alone(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_ollama()
    fakes.append(await fake.start())
    watcher = Watcher(session, [parse_address(fake.url)], discover=False, pulse=0.02, refresh=3600)
    async with asyncio.timeout(10), aclosing(watcher.watch()) as told:
        assert [one.healthy for one in await anext(told)] == [True]
        await fake.stop()
        assert [one.healthy for one in await anext(told)] == [False]
        await fake.start()
        assert [one.healthy for one in await anext(told)] == [True]


async def test_an_engine_started_later_is_found_when_poked(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = await fake_vllm().start()
    await fake.stop()
    watcher = Watcher(session, ports=[fake.port], pulse=3600, refresh=3600)
    async with asyncio.timeout(10), aclosing(watcher.watch()) as told:
        assert await anext(told) == []
        fakes.append(await fake.start())
        watcher.poke()
        assert [one.name for one in await anext(told)] == ["vllm"]


async def test_the_list_is_repeated_though_nothing_changed(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_ollama()
    fakes.append(await fake.start())
    now = 1000.0
    watcher = Watcher(
        session, [parse_address(fake.url)], discover=False, pulse=0.01, clock=lambda: now
    )
    async with asyncio.timeout(10), aclosing(watcher.watch()) as told:
        first = await anext(told)
        now += 30
        assert await anext(told) == first


async def test_a_changed_kind_changes_the_name(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    fake = fake_llama_server()
    await fake.start()
    await fake.stop()
    watcher = Watcher(session, [parse_address(fake.url)], discover=False)
    (before,) = await watcher.refresh()
    assert (before.name, before.healthy) == ("openai", False)
    fakes.append(await fake.start())
    (after,) = await watcher.refresh()
    assert (after.name, after.kind, after.healthy) == ("llama-server", "llama-server", True)
    assert watcher.engine("openai") is None


async def test_no_more_engines_are_reported_than_a_server_takes(
    session: aiohttp.ClientSession, fakes: list[FakeEngine]
) -> None:
    for number in range(18):
        fakes.append(await fake_openai(f"m{number}").start())
    watcher = Watcher(session, ports=[fake.port for fake in fakes])
    reports = await watcher.refresh()
    assert len(reports) == 16
    messages.decoder(messages.Engines).decode(messages.encode(messages.Engines(reports)))
    assert msgspec.structs.asdict(reports[0])["healthy"]
