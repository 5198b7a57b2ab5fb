"""The benchmark's own parts: what it calls right is right, and it notices what is not."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from typing import Any, cast

import pytest

from benchmarks import canned
from benchmarks.mock_engine import STREAM_HEAD
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


def load(site: Site, *words: str, keys: str = "") -> Any:
    command = [sys.executable, "-m", "benchmarks.load", *words]
    return json.loads(site.run(command, environ={"FABRIC_KEY": keys}))


@pytest.mark.parametrize(
    "words",
    [
        ("streams", "--seconds", "0.2"),
        ("paced", "--seconds", "0.5", "--concurrency", "10"),
        ("probe", "--seconds", "0.2"),
        ("probe", "--seconds", "0.2", "--stream"),
    ],
)
@pytest.mark.parametrize("rewriting", [False, True], ids=["as it is", "rewriting"])
def test_load_finds_nothing_wrong_with_the_mock_engine(
    site: Site, engine: str, words: tuple[str, ...], rewriting: bool
) -> None:
    result = load(site, words[0], engine, *words[1:], *["--rewriting", engine] * rewriting)
    assert result["requests"] > 0
    assert (result["wrong"], result["lost"], result["refused"]) == (0, 0, 0), result["problem"]


@pytest.mark.parametrize("rewriting", [False, True], ids=["as it is", "rewriting"])
def test_events_of_an_answers_last_read_count(site: Site, engine: str, rewriting: bool) -> None:
    words = ["streams", engine, "--model", canned.BURST_MODEL, "--seconds", "0.2"]
    result = load(site, *words, *["--rewriting", engine] * rewriting)
    assert result["received"] >= result["events"] >= canned.FAST_EVENTS


def test_cold_requests_go_to_all_places_in_turn(site: Site, engine: str) -> None:
    first, second = load(site, "cold", engine, engine, "--every", "0.01", "--seconds", "0.4")
    for told in (first, second):
        assert (told["requests"], told["problem"]) == (20, None)
        assert 0 < told["p50_ms"] <= told["p90_ms"] <= told["p99_ms"]


async def test_each_place_gets_its_own_key_and_its_own_faults(site: Site, engine: str) -> None:
    async with ScriptedEngine() as refusing:
        refusing.plan = Plan(status=503)
        words = ["cold", engine, refusing.url, "--every", "0.01", "--seconds", "0.04"]
        right, refused = await asyncio.to_thread(load, site, *words, keys="one,two")
        request = await refusing.started()
    assert request.headers["Authorization"] == "Bearer two"
    assert (right["requests"], right["problem"]) == (2, None)
    assert (refused["requests"], refused["refused"], refused["lost"]) == (0, 1, 1)


@pytest.mark.parametrize("model", canned.PACES)
def test_paced_streams_keep_their_pace(site: Site, engine: str, model: str) -> None:
    words = ["paced", engine, "--model", model, "--seconds", "0.5", "--concurrency", "10"]
    result = load(site, *words)
    assert result["events"] == 10 * round(0.5 / canned.PACES[model])
    assert result["gap_p50_ms"] == pytest.approx(canned.PACES[model] * 1000, abs=4)


class Talk(asyncio.Protocol):
    """An engine that comments before it answers, as the server does for a stream that waits."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        comment = canned.chunk(b": waiting for the model\n\n")
        answer = canned.token_chunks(canned.FAST_EVENTS) + canned.last_chunks(usage=False)
        self._transport.write(STREAM_HEAD + comment * 2 + answer)


async def test_comments_before_an_answer_are_no_part_of_it(site: Site) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Talk, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        result = await asyncio.to_thread(load, site, "probe", url, "--stream", "--seconds", "0")
    assert (result["requests"], result["comments"], result["problem"]) == (1, 2, None)


@pytest.mark.parametrize("rewriting", [False, True], ids=["as it is", "rewriting"])
@pytest.mark.parametrize(
    ("plan", "kind"),
    [
        (Plan(), "wrong"),
        (Plan(status=503), "refused"),
        (Plan(cut_after=0), "lost"),
    ],
)
async def test_load_tells_what_is_wrong(site: Site, plan: Plan, kind: str, rewriting: bool) -> None:
    async with ScriptedEngine() as engine:
        engine.plan = plan
        words = ["probe", engine.url, "--stream", "--seconds", "0"]
        words += ["--rewriting", engine.url] * rewriting
        result = await asyncio.to_thread(load, site, *words)
        assert result[kind] == 1


def test_an_answer_means_the_same_in_other_words() -> None:
    stream = canned.body(3)
    other = stream.replace(b'"created":1700000000', b'"created":1800000000')
    assert other != stream
    assert canned.meaning(other) == canned.meaning(stream)
    assert canned.meaning(canned.SHARED) == canned.meaning(canned.SMALL)


@pytest.mark.parametrize(
    ("answer", "whole"),
    [
        (canned.body(2), True),
        (canned.body(3).replace(b"0000001", b"0000002"), True),
        (canned.body(3).replace(b'"stop"', b'"length"'), True),
        (canned.body(3).removesuffix(canned.DONE), False),
        (canned.body(3)[:-1], False),
        (canned.SMALL, True),
        (canned.SMALL[:-1], False),
        (b"", False),
    ],
    ids=["short", "twice", "length", "no end", "cut", "no stream", "no JSON", "empty"],
)
def test_an_answer_that_says_something_else_is_told_apart(answer: bytes, whole: bool) -> None:
    meaning = canned.meaning(answer)
    assert (meaning is not None) is whole
    assert meaning != canned.meaning(canned.body(3))


def test_a_large_fabric_is_calculated_from_measured_costs(site: Site) -> None:
    few = ("--nodes", "40", "--servers", "4", "--requests", "400", "--seconds", "0.01")
    command = [sys.executable, "-m", "benchmarks.fabric_scale", *few]
    found = json.loads(site.run([*command, "--json"]))
    assert min(found["costs"].values()) > 0
    derived = found["derived"]
    assert derived["links"] == {"server": 10, "all": 40}
    assert derived["mesh_connections"] == {"server": 6, "all": 24}
    assert derived["heartbeats"]["all"] == pytest.approx(40 / 15)
    assert derived["store_records"]["server"] == pytest.approx(100 + 10 / 15)
    table = site.run(command).splitlines()
    assert len(table) > len(derived)
    assert max(map(len, table)) <= 80
