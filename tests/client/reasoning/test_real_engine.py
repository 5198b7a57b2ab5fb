"""What a real llama-server writes comes out in the public shape, whichever way it writes it."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest

from fabric_client.reasoning import ReasoningFilter
from tests.lab.llama import LlamaServer

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['reasoning_content'] is defined %}"
    "{{ '<think>\\n' + m['reasoning_content'] + '\\n</think>\\n\\n' }}{% endif %}"
    "{{ m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""As Qwen3's: from it llama-server knows that the model thinks, and how."""
THINKS = r'root ::= "<think>\n" [a-z ]{5,20} "\n</think>" "\n\n" [A-Z]{5,20}'
DOES_NOT = "root ::= [A-Z]{5,20}"
Json = dict[str, Any]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    template = tmp_path_factory.mktemp("template") / "thinks.jinja"
    template.write_text(TEMPLATE)
    with LlamaServer(options=["--jinja", "--chat-template-file", str(template)]) as engine:
        yield engine


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def asked(
    http: aiohttp.ClientSession, llama: LlamaServer, grammar: str, **more: Any
) -> tuple[bytes, bytes]:
    """What the engine sent, and what became of it."""
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "grammar": grammar,
        "max_tokens": 200,
        "stream_options": {"include_usage": True},
        **more,
    }
    reasoning = ReasoningFilter()
    sent = told = b""
    async with http.post(f"{llama.url}/v1/chat/completions", json=body) as answer:
        names = [(name.lower(), value) for name, value in answer.headers.items()]
        decided = reasoning.head(answer.status, names)
        async for data in answer.content.iter_any():
            sent += data
            told += reasoning.feed(data)
    told += reasoning.end()
    status, headers = decided or reasoning.decided or (0, [])
    assert status == 200
    assert "content-length" not in [name.lower() for name, _ in headers]
    return sent, told


def read(stream: bytes) -> tuple[dict[int, tuple[str, str]], Json]:
    """Reasoning and content of each choice, and the usage."""
    texts: dict[int, tuple[str, str]] = {}
    usage: Json = {}
    lines = [line[6:] for line in stream.splitlines() if line]
    assert lines.pop() == b"[DONE]"
    for line in lines:
        chunk = json.loads(line)
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            thought, said = texts.get(choice["index"], ("", ""))
            delta = choice["delta"]
            thought += delta.get("reasoning_content") or ""
            texts[choice["index"]] = (thought, said + (delta.get("content") or ""))
    return texts, usage


@pytest.mark.parametrize("format", ["none", "auto"])
async def test_a_stream_has_its_reasoning_apart(
    llama: LlamaServer, http: aiohttp.ClientSession, format: str
) -> None:
    sent, told = await asked(http, llama, THINKS, stream=True, n=2, reasoning_format=format)
    assert (b"reasoning_content" in sent) == (format == "auto")
    texts, usage = read(told)
    assert sorted(texts) == [0, 1]
    for thought, said in texts.values():
        assert re.fullmatch(r"\s*[a-z ]+\s*", thought)
        assert re.fullmatch(r"\s*[A-Z]+", said)
    assert usage["analysis_tokens"] > 0 < usage["final_tokens"]
    assert usage["analysis_tokens"] + usage["final_tokens"] == usage["completion_tokens"]


@pytest.mark.parametrize("format", ["none", "auto"])
async def test_an_unstreamed_answer_has_its_reasoning_apart(
    llama: LlamaServer, http: aiohttp.ClientSession, format: str
) -> None:
    sent, told = await asked(http, llama, THINKS, reasoning_format=format)
    assert (b"reasoning_content" in sent) == (format == "auto")
    answer = json.loads(told)
    message, usage = answer["choices"][0]["message"], answer["usage"]
    assert re.fullmatch(r"\s*[a-z ]+\s*", message["reasoning_content"])
    assert re.fullmatch(r"\s*[A-Z]+", message["content"])
    assert usage["analysis_tokens"] > 0 < usage["final_tokens"]
    assert usage["analysis_tokens"] + usage["final_tokens"] == usage["completion_tokens"]
    assert answer["timings"] == json.loads(sent)["timings"]


async def test_a_stream_without_reasoning_differs_in_its_usage_only(
    llama: LlamaServer, http: aiohttp.ClientSession
) -> None:
    sent, told = await asked(http, llama, DOES_NOT, stream=True)
    usage_chunk = re.compile(rb'data: {"choices":\[\],[^\n]+')
    assert usage_chunk.sub(b"", told) == usage_chunk.sub(b"", sent)
    _, usage = read(told)
    assert usage["final_tokens"] == usage["completion_tokens"]
    assert usage["analysis_tokens"] == 0
