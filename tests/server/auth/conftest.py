"""Fixtures of the tests of authentication."""

from __future__ import annotations

import pytest

from fabric_server.storage.memory import MemoryCache
from tests.server.auth.fakes import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(clock: Clock) -> MemoryCache:
    return MemoryCache(clock=clock)
