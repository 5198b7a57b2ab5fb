"""Requests and usage on the API port, from the ledger."""

from __future__ import annotations

import time

import pytest

from fabric_server.admin.reports import Group
from ledger.reports import GROUPS
from tests.contracts.samples import NOON
from tests.server.admin.server import Server, fill


async def test_requests_are_read_page_by_page_newest_first(server: Server) -> None:
    await fill(server)
    seen, page, pages = [], "", 0
    while True:
        answer = (await server.get(f"/api/v1/requests?limit=5{page}")).body
        pages += 1
        seen += [one["request_id"] for one in answer["data"]]
        if answer["next"] is None:
            break
        page = f"&before={answer['next']}"
    assert seen == [f"req_{number:08d}" for number in reversed(range(10))]
    assert pages == 2


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("key=key_1", [9, 7, 5, 3, 1]),
        ("account=account_0&limit=2", [8, 6]),
        ("node=node_attic&model=a", [2, 0]),
        ("model=b%2Fc%3Ad&outcome=refused", [9, 7, 5]),
        ("model=nothing", []),
    ],
)
async def test_requests_are_filtered(server: Server, query: str, numbers: list[int]) -> None:
    await fill(server)
    data = (await server.get(f"/api/v1/requests?{query}")).body["data"]
    assert [one["request_id"] for one in data] == [f"req_{number:08d}" for number in numbers]


async def test_one_request_is_found_by_its_id(server: Server) -> None:
    await fill(server)
    one = await server.get("/api/v1/requests/req_00000003")
    assert (one.status, one.body["outcome"], one.body["stream"]) == (200, "refused", True)
    nothing = await server.get("/api/v1/requests/req_nothing")
    assert (nothing.status, nothing.code) == (404, "request_not_found")


async def test_usage_is_summed_as_asked(server: Server) -> None:
    await fill(server)
    hour = int(NOON)
    times = f"since={NOON}&until={NOON + 3600}"
    total = (await server.get(f"/api/v1/usage?{times}")).body
    assert (total["since"], total["until"], total["complete"]) == (NOON, NOON + 3600, True)
    (row,) = total["data"]
    assert (row["group"], row["requests"], row["succeeded"]) == ({}, 10, 5)
    assert (row["prompt_tokens"], row["completion_tokens"]) == (100, 35)

    by = (await server.get(f"/api/v1/usage?{times}&by=node,hour")).body
    assert [row["group"] for row in by["data"]] == [
        {"node": None, "hour": hour},
        {"node": "node_attic", "hour": hour},
    ]
    cut = (await server.get(f"/api/v1/usage?{times}&by=key&limit=1")).body
    assert (len(cut["data"]), cut["complete"]) == (1, False)
    assert (await server.get(f"/api/v1/usage?{times}&by=")).body == total


@pytest.mark.parametrize(
    "times",
    [
        "since=2025-06-15T00:00:00Z&until=2025-06-16",
        "since=2025-06-15T02:00:00%2B02:00&until=2025-06-16T00:00:00",
        "since=2025-06-15T02:00:00+02:00&until=1750032000.0",
    ],
)
async def test_times_may_be_written_as_people_do(server: Server, times: str) -> None:
    usage = (await server.get(f"/api/v1/usage?{times}")).body
    assert (usage["since"], usage["until"]) == (1_749_945_600.0, 1_750_032_000.0)


async def test_usage_of_the_last_day_is_the_default(server: Server) -> None:
    usage = (await server.get("/api/v1/usage")).body
    assert usage["until"] == pytest.approx(time.time(), abs=5)
    assert usage["until"] - usage["since"] == 86_400


def test_usage_can_be_summed_by_all_that_the_store_can() -> None:
    assert Group.__args__ == GROUPS  # type: ignore[attr-defined]
