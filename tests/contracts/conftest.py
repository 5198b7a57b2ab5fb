"""Which adapters the suites here run against.  A new adapter is one more line."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from fabric_server.storage.connect import open_bus, open_cache, open_store
from fabric_server.storage.interfaces import Bus, Cache
from fabric_server.storage.store import SqlStore
from tests.lab.redis_server import RedisCluster, RedisSentinel, RedisServer

SHARED_STORES = ("sqlite", "postgresql")
"""Those that several processes can use at once."""
STORES = (*SHARED_STORES, "sqlite in memory")
SHARED_CACHES = ("redis", "redis tls", "redis sentinel", "redis cluster")
"""Those that several processes can use at once.  Tests share them: each uses names of its own."""
CACHES = ("memory", *SHARED_CACHES)
BUSES = ("memory://", "spool://")
"""Kafka's, whose two ends are in two processes, is held to the same in test_kafka.py."""


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


@pytest.fixture(scope="session")
def redis_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis-tls"), tls=True) as server:
        yield server


@pytest.fixture(scope="session")
def redis_sentinel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisSentinel]:
    with RedisSentinel(tmp_path_factory.mktemp("redis-sentinel")) as group:
        yield group


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    with RedisCluster(tmp_path_factory.mktemp("redis-cluster")) as group:
        yield group


def cache_url(kind: str, request: pytest.FixtureRequest) -> str:
    if kind == "memory":
        return "memory://"
    if kind == "redis tls":
        server = request.getfixturevalue("redis_tls")
        return f"{server.url}?ssl_ca_certs={server.ca}"
    if kind == "redis sentinel":
        return sentinel_url(request.getfixturevalue("redis_sentinel"))
    if kind == "redis cluster":
        return cluster_url(request.getfixturevalue("redis_cluster"))
    url: str = request.getfixturevalue("redis_server").url
    return url


def sentinel_url(group: RedisSentinel) -> str:
    host, port = group.address
    return f"redis+sentinel://{host}:{port}/{group.group}/0"


def cluster_url(group: RedisCluster) -> str:
    return "redis+cluster://" + ",".join(f"{host}:{port}" for host, port in group.addresses)


@pytest.fixture(params=CACHES)
async def cache(request: pytest.FixtureRequest) -> AsyncIterator[Cache]:
    cache = await open_cache(cache_url(request.param, request))
    yield cache
    await cache.close()


@pytest.fixture(params=SHARED_CACHES)
def shared_cache_url(request: pytest.FixtureRequest) -> str:
    return cache_url(request.param, request)


@pytest.fixture(params=BUSES)
async def bus(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bus]:
    opened = await open_bus(request.param, directory=tmp_path / "spool", limit=2**20)
    yield opened.bus
    await opened.close()
