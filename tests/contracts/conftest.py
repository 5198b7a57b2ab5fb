"""Which adapters the suites here run against.  A new adapter is one more line."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from fabric_server.backends import Bus, Cache, open_bus, open_cache, open_store
from fabric_server.backends.store import SqlStore

SHARED_STORES = ("sqlite", "postgresql")
"""Those that several processes can use at once."""
STORES = (*SHARED_STORES, "sqlite in memory")
CACHES = {"memory": "memory://"}
BUSES = {"memory": "memory://"}


def store_url(kind: str, request: pytest.FixtureRequest) -> str:
    """Of a store of this kind that is still empty."""
    if kind == "postgresql":
        url: str = request.getfixturevalue("postgres").new_database()
        return url
    if kind == "sqlite":
        return f"sqlite:///{request.getfixturevalue('tmp_path') / 'store.db'}"
    return "sqlite://"


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[SqlStore]:
    store = await open_store(store_url(request.param, request))
    yield store
    await store.close()


@pytest.fixture(params=SHARED_STORES)
def shared_url(request: pytest.FixtureRequest) -> str:
    return store_url(request.param, request)


@pytest.fixture(params=list(CACHES))
async def cache(request: pytest.FixtureRequest) -> AsyncIterator[Cache]:
    cache = await open_cache(CACHES[request.param])
    yield cache
    await cache.close()


@pytest.fixture(params=list(BUSES))
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    bus = await open_bus(BUSES[request.param])
    yield bus
    await bus.close()
