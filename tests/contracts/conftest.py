"""Which adapters the suites here run against.  A new adapter is one more line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from fabric_server.backends import Bus, Cache, open_bus, open_cache, open_store
from fabric_server.backends.store import SqlStore

SHARED_STORES: dict[str, Callable[[Path], str]] = {
    "sqlite": lambda folder: f"sqlite:///{folder / 'store.db'}",
}
"""Those that several processes can use at once."""
STORES = {**SHARED_STORES, "sqlite in memory": lambda folder: "sqlite://"}
CACHES = {"memory": "memory://"}
BUSES = {"memory": "memory://"}


@pytest.fixture(params=list(STORES))
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SqlStore]:
    store = await open_store(STORES[request.param](tmp_path))
    yield store
    await store.close()


@pytest.fixture(params=list(SHARED_STORES))
def shared_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return SHARED_STORES[request.param](tmp_path)


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
