"""Fixtures of the tests of listeners."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.server.net.ports import (
    Trust,
)


@pytest.fixture
def trust(tmp_path: Path) -> Trust:
    return Trust(tmp_path)
