"""Fixtures of the spool's tests."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from fabric_server.storage.spool.options import SpoolOptions
from fabric_server.storage.spool.spool import Spool
from tests.server.storage.spool.spools import MIB, SIZE, publish


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture(scope="module")
def thirty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spool with entries 100 to 129 in three segments."""

    async def make(directory: Path) -> None:
        spool = Spool.open(directory, limit=MIB, options=SpoolOptions(segment_bytes=10 * SIZE))
        publish(spool, range(100, 130))
        await spool.close()

    directory = tmp_path_factory.mktemp("thirty") / "spool"
    asyncio.run(make(directory))
    return directory
