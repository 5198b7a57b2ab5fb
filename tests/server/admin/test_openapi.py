"""The API port's description of itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fabric_server.admin.server import make_application
from tests.server.admin.server import Server, figures, schemas


async def test_every_route_is_described(server: Server) -> None:
    described = {
        (method.upper(), path)
        for path, operations in server.description["paths"].items()
        for method in operations
    }
    served = {
        (route.method, resource.canonical)
        for resource in make_application(server.app.admin.context).router.resources()
        for route in resource
        if route.method != "HEAD"
    }
    assert described == served
    assert server.description["openapi"].startswith("3.1")


async def test_every_route_and_figure_is_in_the_manual(server: Server) -> None:
    manual = (Path(__file__).parents[3] / "docs" / "api.md").read_text()
    for path in server.description["paths"]:
        assert f"`{path}`" in manual
    named = set(re.findall(r"fabric_\w+", manual))
    told = {name for name, *_ in await figures(server)}
    plain = {re.sub(r"_(bucket|sum|count)$", "", name) for name in told if "fabric_" in name}
    # Counted by label: nothing was counted yet.
    counted = ("requests", "refusals", "tokens", "media_urls", "kernel_blocks")
    silent = {f"fabric_{name}_total" for name in counted}
    of_workers = {"fabric_workers_serving", "fabric_worker_restarts_total"}  # their parent's
    assert plain | silent | of_workers == named


async def test_the_description_holds_together(server: Server) -> None:
    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            own = [value["$ref"]] if "$ref" in value else []
            return own + [one for item in value.values() for one in references(item)]
        if isinstance(value, list):
            return [one for item in value for one in references(item)]
        return []

    found = {one.rpartition("/") for one in references(server.description)}
    assert {prefix for prefix, _, _ in found} == {"#/components/schemas"}
    assert {name for _, _, name in found} == set(schemas(server))
    names = [
        operation["operationId"]
        for operations in server.description["paths"].values()
        for operation in operations.values()
    ]
    assert len(set(names)) == len(names)
    for operations in server.description["paths"].values():
        for operation in operations.values():
            assert operation["summary"]
            assert "default" in operation["responses"]


async def test_a_query_is_described_with_its_limits(server: Server) -> None:
    operation = server.description["paths"]["/api/v1/requests"]["get"]
    (limit,) = [one for one in operation["parameters"] if one["name"] == "limit"]
    assert limit == {
        "name": "limit",
        "in": "query",
        "schema": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
    }
