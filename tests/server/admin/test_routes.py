"""Routes whose handlers' signatures say what they take and give."""

from __future__ import annotations

from typing import Literal

import pytest
from msgspec import Struct

from fabric_server.admin.routes import Route


class Broken(Struct):
    pass


def test_a_route_whose_handler_does_not_fit_its_path_is_a_defect() -> None:
    async def handler(id: str) -> Broken:
        return Broken()

    with pytest.raises(TypeError, match="does not fit"):
        Route("GET", "/things", handler)
    both: Route = Route("GET", "/things/{id}", handler)
    assert both.parts == ["id"]


def test_statuses_are_read_from_what_a_handler_says_it_returns() -> None:
    async def handler() -> tuple[Literal[200, 503], Broken]:
        return 503, Broken()

    assert Route("GET", "/", handler).statuses == (200, 503)
