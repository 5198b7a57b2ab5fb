"""Scripted HTTP servers that answer as Ollama, vLLM, llama-server, LM Studio, SGLang, KoboldCpp,
LocalAI and TGI are documented to.

A real llama-server is asked where one is built: ``tests/lab``.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from typing import Any, Self

import aiohttp
from aiohttp import web

from fabric_client.engines.addresses import parse_address
from fabric_client.engines.discovery import Engine, EngineSettings
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
        self.posted: list[str] = []
        self.keys: set[str | None] = set()
        """What was sent as ``Authorization``."""
        self.port = 0
        self.hang = False
        self.takes_posts = False
        self._runner: web.AppRunner | None = None

    async def start(self, tls: ssl.SSLContext | None = None) -> Self:
        """Again after ``stop``: on the port it had."""
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        if self.takes_posts:
            app.router.add_post("/{path:.*}", self._answer)
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
        self.keys.add(request.headers.get("Authorization"))
        if request.method == "POST":
            self.posted.append(request.path)
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
            "details": {
                **details,
                "quantization_level": "Q4_K_M",
                "context_length": 131072,
            },
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


def fake_sglang() -> FakeEngine:
    """A fake, made from SGLang's docs/basic_usage/native_api.md and its http_server.py."""
    row = {
        "id": "Qwen/Qwen3-8B",
        "object": "model",
        "created": 1795957161,
        "owned_by": "sglang",
        "root": "Qwen/Qwen3-8B",
        "parent": None,
        "max_model_len": 40960,
    }
    info = {
        "model_path": "/home/joe/models/qwen",
        "tokenizer_path": "/home/joe/models/qwen",
        "is_generation": True,
        "preferred_sampling_params": None,
        "weight_version": "default",
        "has_image_understanding": True,
        "has_audio_understanding": False,
    }
    server = {
        "model_path": "/home/joe/models/qwen",
        "api_key": "sk-of-the-owner",
        "quantization": "fp8",
        "context_length": None,
        "max_running_requests": 24,
        "max_total_num_tokens": 20480,
        "internal_states": [{"effective_max_running_requests_per_dp": 24}],
        "version": "0.5.3",
    }
    paths = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank", "/api/chat")
    return FakeEngine(
        {
            "/v1/models": {"object": "list", "data": [row]},
            "/model_info": info,
            "/server_info": server,
            "/openapi.json": {"paths": {path: {"post": {}} for path in paths}},
            "/api/version": {"version": "0.5.3"},
        },
        server="uvicorn",
        otherwise=(404, {"detail": "Not Found"}),
    )


def fake_koboldcpp() -> FakeEngine:
    """A fake, made from koboldcpp.py 1.119; it imitates Ollama and llama-server as well."""
    row = {
        "id": "koboldcpp/gemma-3-12b-it-Q4_K_M",
        "object": "model",
        "created": 1795957161,
        "owned_by": "koboldcpp",
        "permission": [],
        "root": "koboldcpp",
    }
    version = {
        "result": "KoboldCpp",
        "version": "1.119",
        "protected": False,
        "llm": True,
        "txt2img": False,
        "vision": True,
        "audio": False,
        "transcribe": True,
        "embeddings": False,
        "admin": 0,
    }
    return FakeEngine(
        {
            "/v1/models": {"object": "list", "data": [row]},
            "/api/extra/version": version,
            "/api/extra/true_max_context_length": {"value": 12288},
            "/api/version": {"version": "0.7.0"},
            "/api/tags": {"models": [{"name": "koboldcpp"}]},
            "/props": {"default_generation_settings": {"n_ctx": 12288}, "total_slots": 1},
        },
        server="KoboldCppServer 1",
        otherwise=(
            404,
            "Error: KoboldCpp HTTP Server is running, but this endpoint does not exist.",
        ),
    )


def fake_localai(*, newer: bool = True) -> FakeEngine:
    """A fake, made from LocalAI's core/http/endpoints and its page on /system."""
    names = ("gpt-4", "text-embedding-ada-002")
    answers: dict[str, object] = {
        "/v1/models": {"object": "list", "data": [{"id": n, "object": "model"} for n in names]},
        "/readyz": "OK",
        "/system": {"backends": ["llama-cpp", "whisper"], "loaded_models": [{"id": "gpt-4"}]},
    }
    if newer:
        chat = {
            "id": "gpt-4",
            "object": "model",
            "capabilities": ["chat", "completion", "vision"],
            "input_modalities": ["text", "image"],
            "output_modalities": ["text"],
            "context_size": 8192,
        }
        embeds = {"id": names[1], "object": "model", "capabilities": ["embeddings"]}
        answers["/v1/models/capabilities"] = {"object": "list", "data": [chat, embeds]}
        answers["/api/version"] = {"version": "0.9.0"}
    return FakeEngine(answers, otherwise=(404, {"error": {"code": 404, "message": "Not Found"}}))


def fake_tgi() -> FakeEngine:
    """A fake, made from text-generation-inference's router/src/lib.rs and server.rs."""
    name = "meta-llama/Llama-3.1-8B-Instruct-AWQ"
    info = {
        "model_id": name,
        "model_sha": "0e9e39f249a16976918f6564b8830bc894c89659",
        "model_pipeline_tag": "text-generation",
        "max_concurrent_requests": 128,
        "max_best_of": 2,
        "max_stop_sequences": 4,
        "max_input_tokens": 4095,
        "max_total_tokens": 4096,
        "validation_workers": 2,
        "max_client_batch_size": 4,
        "router": "text-generation-router",
        "version": "3.3.4",
        "sha": None,
        "docker_label": None,
    }
    row = {"id": name, "object": "model", "created": 0, "owned_by": name}
    return FakeEngine(
        {"/v1/models": {"object": "list", "data": [row]}, "/info": info, "/health": ""},
        otherwise=(404, ""),
    )


def fake_openai(*names: str) -> FakeEngine:
    rows = [{"id": name, "object": "model", "owned_by": "somebody"} for name in names]
    return FakeEngine({"/v1/models": {"object": "list", "data": rows}})


async def report_of(
    session: aiohttp.ClientSession, fakes: list[FakeEngine], fake: FakeEngine, **options: Any
) -> EngineReport:
    fakes.append(await fake.start())
    settings = EngineSettings(**options)
    return await Engine(session, parse_address(fake.url), settings).probe()


def by_name(report: EngineReport) -> dict[str, ModelReport]:
    return {model.name: model for model in report.models}


def accepts(report: EngineReport) -> None:
    """A server would take this report."""
    sent = messages.encode(messages.Engines([report]))
    assert messages.decoder(messages.Engines).decode(sent).engines == [report]
