"""A real ACME CA, which the tests of this room share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.lab.pebble import Pebble


@pytest.fixture(scope="session")
def pebble(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pebble]:
    with Pebble(tmp_path_factory.mktemp("pebble")) as ca:
        yield ca
