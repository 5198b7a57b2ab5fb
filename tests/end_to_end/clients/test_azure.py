"""openai-python's client of Azure OpenAI: its key's header, and its paths of deployments."""

from __future__ import annotations

from collections.abc import AsyncIterator

import openai
import pytest

from tests.end_to_end.clients.place import MESSAGES, MODELS, PATIENCE, TOKENS, Place

pytestmark = pytest.mark.asyncio(loop_scope="session")
MODEL = MODELS["llama-server"]


@pytest.fixture
async def client(place: Place) -> AsyncIterator[openai.AsyncAzureOpenAI]:
    async with openai.AsyncAzureOpenAI(
        azure_endpoint=place.url,
        api_version="2024-10-21",
        api_key=place.key,
        max_retries=0,
        timeout=PATIENCE,
        http_client=openai.DefaultAsyncHttpxClient(verify=place.trust()),
    ) as client:
        yield client


async def test_a_deployment_answers(client: openai.AsyncAzureOpenAI) -> None:
    answer = await client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=TOKENS)
    assert answer.model == MODEL
    stream = await client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=TOKENS, stream=True
    )
    assert {chunk.model async for chunk in stream} == {MODEL}


async def test_models_and_mistakes_are_told(client: openai.AsyncAzureOpenAI) -> None:
    assert MODEL in [model.id async for model in client.models.list()]
    with pytest.raises(openai.NotFoundError) as caught:
        await client.chat.completions.create(model="none", messages=MESSAGES)
    assert caught.value.code == "model_not_found"
