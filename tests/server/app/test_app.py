"""A server as a whole: what keeps it running."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.fabric import Fabric


@pytest.mark.parametrize("bus", ["spool://", "memory://"])
async def test_a_server_runs_until_it_is_stopped(tmp_path: Path, bus: str) -> None:
    """No part of it ends by itself, whichever back ends it has."""
    async with Fabric(tmp_path, bus=bus) as fabric:
        await asyncio.sleep(0.1)
        assert fabric.running
