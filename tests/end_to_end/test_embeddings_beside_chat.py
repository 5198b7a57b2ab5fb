"""One node with an engine for chats and one for embeddings, and engines that lose a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.engine import Plan, ScriptedEngine
from tests.fabric import Fabric
from tests.lab.llama import LlamaServer

MESSAGES: Any = [{"role": "user", "content": "hi"}]


class Named(LlamaServer):
    """A llama-server that serves its model under a name of its own."""

    def __init__(self, model: str, *, embeddings: bool) -> None:
        super().__init__(2, embeddings=embeddings)
        self.model = model


@pytest.fixture(scope="module", params=[("chatty", "embedder"), ("both", "both")])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[Named, Named]]:
    chat, embeds = request.param
    with Named(chat, embeddings=False) as first, Named(embeds, embeddings=True) as second:
        yield first, second


async def test_each_request_goes_to_the_engine_that_can_do_it(
    tmp_path: Path, pair: tuple[Named, Named]
) -> None:
    chat, embeds = pair
    async with Fabric(tmp_path) as fabric, fabric.openai(max_retries=0) as client:
        await fabric.join(chat.url, embeds.url)
        [node] = fabric.app.control_plane.registry.nodes()
        first, second = node.engines.values()
        assert "/v1/embeddings" not in first.paths
        assert "/v1/embeddings" in second.paths
        assert not {"/rerank", "/v1/rerank"} & (first.paths | second.paths)
        assert "embedding" in second.models[embeds.model].capabilities
        assert "embedding" not in first.models[chat.model].capabilities
        for _ in range(4):
            vectors = await client.embeddings.create(model=embeds.model, input=["a", "b"])
            assert len(vectors.data) == 2
            answer = await client.chat.completions.create(
                model=chat.model, messages=MESSAGES, max_tokens=2
            )
            assert answer.choices
        if chat.model != embeds.model:
            with pytest.raises(openai.NotFoundError, match="/v1/embeddings"):
                await client.embeddings.create(model=chat.model, input="a")


async def test_a_request_that_meets_the_word_that_a_model_is_gone_is_answered_elsewhere(
    tmp_path: Path,
) -> None:
    gone = Plan(status=404, error={"error": {"message": "The model `tiny` does not exist."}})
    async with ScriptedEngine() as loses, ScriptedEngine() as keeps, Fabric(tmp_path) as fabric:
        await fabric.join(loses.url, name="a")
        await fabric.join(keeps.url, name="b")
        loses.plan = gone

        def unlisted() -> object:
            return {"object": "list", "data": []}

        async with fabric.openai(max_retries=0) as client:
            for _ in range(6):
                answer = await client.chat.completions.create(model="tiny", messages=MESSAGES)
                assert answer.choices[0].message.content == "Hello, world"
                if loses.requests:
                    loses.probes["/v1/models"] = unlisted
        assert {entry.outcome for entry in await fabric.ledger()} == {"ok"}
        assert len(loses.requests) <= 2


async def test_where_it_was_the_only_one_the_user_is_told_that_the_model_is_gone(
    tmp_path: Path,
) -> None:
    async with ScriptedEngine(["tiny", "other"]) as engine, Fabric(tmp_path) as fabric:
        await fabric.join(engine.url)
        engine.plan = Plan(status=404, error={"error": "model 'tiny' not found"})
        async with fabric.openai(max_retries=0) as client:
            with pytest.raises(openai.NotFoundError) as error:
                await client.chat.completions.create(model="tiny", messages=MESSAGES)
            assert error.value.code == "model_not_found"
            engine.plan = Plan()
            answer = await client.chat.completions.create(model="other", messages=MESSAGES)
            assert answer.choices
