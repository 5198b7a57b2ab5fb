"""The fixtures that all client tests share: a server, and a node of each kind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.end_to_end.clients.place import Place, running


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def whole_place(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Place]:
    async with running(tmp_path_factory.mktemp("clients")) as place:
        yield place


@pytest.fixture
def place(whole_place: Place) -> Iterator[Place]:
    yield whole_place
    whole_place.reset()
