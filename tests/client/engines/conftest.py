"""Fixtures of the tests of engines."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.fake_engines import FakeEngine


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def fakes() -> AsyncIterator[list[FakeEngine]]:
    """Those put in here are stopped at the end."""
    started: list[FakeEngine] = []
    yield started
    for fake in started:
        await fake.stop()
