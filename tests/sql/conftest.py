"""Fixtures of the tests of databases."""

from __future__ import annotations

from pathlib import Path

import pytest

from sql.sqlite import SqliteDatabase


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def database(path: Path) -> SqliteDatabase:
    return SqliteDatabase(path)
