"""The benchmark's own parts: what it calls right is right, and it notices what is not."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.processes import Site
from tests.engine import Plan, ScriptedEngine


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as site:
        yield site


@pytest.fixture
def engine(site: Site) -> str:
    mock = [sys.executable, "-m", "benchmarks.mock_engine", "--seconds", "0.5"]
    return site.start_and_read(mock)[1]


def load(site: Site, *words: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(site.run([sys.executable, "-m", "benchmarks.load", *words]))
    return result


@pytest.mark.parametrize(
    "words",
    [
        ("streams", "--seconds", "0.2"),
        ("paced", "--seconds", "0.5", "--concurrency", "10"),
        ("probe", "--seconds", "0.2"),
        ("probe", "--seconds", "0.2", "--stream"),
    ],
)
def test_load_finds_nothing_wrong_with_the_mock_engine(
    site: Site, engine: str, words: tuple[str, ...]
) -> None:
    result = load(site, words[0], engine, *words[1:])
    assert result["requests"] > 0
    assert (result["wrong"], result["lost"], result["refused"]) == (0, 0, 0), result["problem"]


def test_paced_streams_keep_their_pace(site: Site, engine: str) -> None:
    result = load(site, "paced", engine, "--seconds", "0.5", "--concurrency", "10")
    assert result["events"] == 10 * 50
    assert result["gap_p50_ms"] == pytest.approx(10, abs=2)


@pytest.mark.parametrize(
    ("plan", "kind"),
    [
        (Plan(), "wrong"),
        (Plan(status=503), "refused"),
        (Plan(cut_after=0), "lost"),
    ],
)
async def test_load_tells_what_is_wrong(site: Site, plan: Plan, kind: str) -> None:
    async with ScriptedEngine() as engine:
        engine.plan = plan
        result = await asyncio.to_thread(load, site, "probe", engine.url, "--stream")
        assert result[kind] == 1
