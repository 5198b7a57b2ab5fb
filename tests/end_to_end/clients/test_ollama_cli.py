"""The ``ollama`` program as a client.

It takes https and a certificate authority of one's own, but has no way to send a key: something on
the user's machine has to add it.  Here that is ``KeyAdder``; docs/clients.md has one for users.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio
from aiohttp import web

from tests.end_to_end.clients.matrix import cell
from tests.end_to_end.clients.place import MODELS, Place

CLIENT = "ollama"
pytestmark = pytest.mark.asyncio(loop_scope="session")


class KeyAdder:
    """A proxy that adds the key to each request."""

    def __init__(self, place: Place, session: aiohttp.ClientSession) -> None:
        self._place = place
        self._session = session

    async def handle(self, asked: web.Request) -> web.StreamResponse:
        url, headers = self._place.url + asked.path, {"content-type": "application/json"}
        headers["authorization"] = f"Bearer {self._place.key}"
        body = await asked.read()
        async with self._session.request(asked.method, url, data=body, headers=headers) as said:
            answer = web.StreamResponse(status=said.status)
            answer.content_type = said.content_type
            await answer.prepare(asked)
            async for piece in said.content.iter_any():
                await answer.write(piece)
            await answer.write_eof()
            return answer


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def address(whole_place: Place) -> AsyncIterator[str]:
    connector = aiohttp.TCPConnector(ssl=whole_place.trust())
    async with aiohttp.ClientSession(connector=connector) as session:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", KeyAdder(whole_place, session).handle)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        await runner.cleanup()


async def run(place: Place, address: str, *words: str) -> str:
    trust = {"SSL_CERT_FILE": str(place.ca), "OLLAMA_HOST": address}
    return await asyncio.to_thread(place.ollama.call, *words, **trust)


@cell("/api/tags")
async def test_models_are_listed(place: Place, address: str, kind: str) -> None:
    assert MODELS[kind] in await run(place, address, "list")


@cell("/api/show")
async def test_a_model_is_described(place: Place, address: str, kind: str) -> None:
    assert "completion" in await run(place, address, "show", MODELS[kind])


@cell("/api/generate", streamed=True)
async def test_a_question_is_answered(place: Place, address: str, kind: str) -> None:
    assert place.could_write(
        kind, (await run(place, address, "run", MODELS[kind], "Hello")).strip()
    )


@cell("/api/ps", kinds=("llama-server", "vllm", "ollama"))
async def test_models_in_memory_are_listed(place: Place, address: str, kind: str) -> None:
    await run(place, address, "run", MODELS[kind], "Hello")
    await run(place, address, "ps")


async def test_it_takes_https_and_an_authority_but_has_no_key(place: Place) -> None:
    with pytest.raises(RuntimeError, match="No API key provided"):
        await run(place, place.url, "list")
    with pytest.raises(RuntimeError, match="certificate"):
        await asyncio.to_thread(place.ollama.call, "list", OLLAMA_HOST=place.url)
