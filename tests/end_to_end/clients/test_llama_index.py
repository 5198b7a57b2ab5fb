"""LlamaIndex's OpenAILike: it asks with an older openai-python, by default for completions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.end_to_end.clients.asker import Asker
from tests.end_to_end.clients.matrix import SCRIPTED, cell
from tests.end_to_end.clients.place import MODELS, Place
from tests.lab.client_programs import LAB, llama_index

CLIENT = "llama-index"
pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def index(whole_place: Place) -> AsyncIterator[Asker]:
    command = await asyncio.to_thread(llama_index, LAB / "llama_index" / "ask.py")
    async with Asker(command, whole_place.environ()) as asker:
        yield asker


async def check_streams(place: Place, index: Asker, do: str, kind: str) -> None:
    *pieces, last = [said async for said in index.ask(do=do, model=MODELS[kind], stream=True)]
    assert "done" in last, last
    assert sum(bool(piece["text"]) for piece in pieces) > 1
    assert place.could_write(kind, "".join(piece["text"] or "" for piece in pieces))


@cell("/v1/chat/completions")
async def test_a_chat_comes_whole(place: Place, index: Asker, kind: str) -> None:
    answer = await index.answer(do="chat", model=MODELS[kind])
    assert place.could_write(kind, answer["text"])


@cell("/v1/chat/completions", streamed=True)
async def test_a_chat_streams(place: Place, index: Asker, kind: str) -> None:
    await check_streams(place, index, "chat", kind)


@cell("/v1/chat/completions", streamed=True, kinds=SCRIPTED)
async def test_tokens_of_a_chat_arrive_as_they_are_made(
    place: Place, index: Asker, kind: str
) -> None:
    seen = asyncio.Event()
    place.script(kind, chunks=("Hel", seen, "lo"))
    text = ""
    async for said in index.ask(do="chat", model=MODELS[kind], stream=True):
        text += said.get("text") or ""
        if text == "Hel":
            seen.set()
    assert text == "Hello"


@cell("/v1/completions")
async def test_a_completion_comes_whole(place: Place, index: Asker, kind: str) -> None:
    answer = await index.answer(do="completion", model=MODELS[kind])
    assert place.could_write(kind, answer["text"])


@cell("/v1/completions", streamed=True)
async def test_a_completion_streams(place: Place, index: Asker, kind: str) -> None:
    await check_streams(place, index, "completion", kind)


@cell("/v1/embeddings")
async def test_texts_are_embedded(place: Place, index: Asker, kind: str) -> None:
    answer = await index.answer(do="embeddings", model=MODELS[kind])
    assert len(answer["vectors"]) == 2
    assert all(len(vector) > 2 and any(vector) for vector in answer["vectors"])


async def test_errors_are_those_of_openai(index: Asker) -> None:
    wrong_key = await index.error(do="chat", model=MODELS["vllm"], key="sk-fab-nobody")
    assert (wrong_key["class"], wrong_key["status"]) == ("AuthenticationError", 401)
    unknown = await index.error(do="chat", model="nobody-has-this")
    assert (unknown["class"], unknown["status"]) == ("NotFoundError", 404)
