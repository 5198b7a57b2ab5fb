"""The examples for users, unchanged, and docs/clients.md, which shows parts of them."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.clients.matrix import cell
from tests.end_to_end.clients.place import MODELS, PATIENCE, Place
from tests.lab.client_programs import llama_index, node_js

CLIENT = "examples/clients"
pytestmark = pytest.mark.asyncio(loop_scope="session")

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples" / "clients"
CHAT = "/v1/chat/completions"


async def check(place: Place, command: list[str], kind: str) -> None:
    """Check that ``command`` prints the model's answer; its environment has a key and a CA."""
    done = await asyncio.to_thread(
        subprocess.run,
        command,
        env={**place.environ(), "FABRIC_MODEL": MODELS[kind]},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert place.could_write(kind, done.stdout.splitlines()[0])


def python(name: str) -> list[str]:
    return [sys.executable, str(EXAMPLES / name)]


@cell(CHAT, streamed=True, kinds=("vllm",))
async def test_with_openai(place: Place, kind: str) -> None:
    await check(place, python("with_openai.py"), kind)


@cell(CHAT, streamed=True, kinds=("vllm",))
async def test_with_openai_for_node_js(place: Place, tmp_path: Path, kind: str) -> None:
    script = EXAMPLES / "with_openai.mjs"
    await check(place, await asyncio.to_thread(node_js, tmp_path, script), kind)


@cell("/api/chat", streamed=True, kinds=("vllm",))
async def test_with_ollama(place: Place, kind: str) -> None:
    await check(place, python("with_ollama.py"), kind)


@cell("/v1/messages", streamed=True, kinds=("vllm",))
async def test_with_anthropic(place: Place, kind: str) -> None:
    await check(place, python("with_anthropic.py"), kind)


@cell(CHAT, streamed=True, kinds=("vllm",))
async def test_with_langchain(place: Place, kind: str) -> None:
    await check(place, python("with_langchain.py"), kind)


@cell(CHAT, streamed=True, kinds=("vllm",))
async def test_with_llama_index(place: Place, kind: str) -> None:
    command = await asyncio.to_thread(llama_index, EXAMPLES / "with_llama_index.py")
    await check(place, command, kind)


@cell(CHAT, streamed=True, kinds=("llama-server",))
async def test_with_curl(place: Place, kind: str) -> None:
    await check(place, [str(EXAMPLES / "with_curl.sh")], kind)


async def test_what_the_documentation_shows_is_in_the_examples() -> None:
    examples = [path.read_text() for path in EXAMPLES.glob("with_*")]
    text = (ROOT / "docs" / "clients.md").read_text()
    shown = re.findall(r"^```(?:python|js|sh)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(shown) == len(examples)
    for block in shown:
        assert any(block in example for example in examples), block
