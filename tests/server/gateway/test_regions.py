"""Requests that may only go to nodes of some regions: wherever they wait, and whoever fails."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from fabric_server.routing.admission import DEFAULT_SERVICE_SECONDS
from fabric_server.routing.criteria import Requirements
from protocol.errors import Code
from protocol.messages import ModelReport
from tests.site import ASK, CHAT, DONE, PATIENT, STREAM, Site, chunk
from tests.users import MemoryUser, request

OK = b"{}"


def ask(site: Site, regions: str, body: Any = ASK, path: str = CHAT, **headers: str) -> MemoryUser:
    user = site.user()
    headers = {"x-fabric-region": regions, **site.key, **headers}
    user.send(request("POST", path, body, **headers))
    return user


async def test_a_request_goes_to_the_regions_that_it_names_however_they_are_written() -> None:
    site = Site()
    far, near, north = (site.node(region=name) for name in ("us-east", "eu-west", "eu-north"))
    north.engine.active = north.engine.slots
    for written in ("eu-west", "EU-West", "eu-north, eu-west", " eu-west ,mars "):
        user = ask(site, written)
        (await near.call()).answer(200, OK)
        assert (await user.answer()).status == 200
    assert far.idle


@pytest.mark.parametrize("regions", ["eu-west", "eu-west,mars"])
async def test_without_a_node_there_the_error_names_header_and_regions(regions: str) -> None:
    site = Site()
    far, silent = site.node(region="us-east"), site.node()
    answer = await ask(site, regions).answer()
    assert (answer.status, answer.code) == (503, "no_capacity")
    assert answer.error["param"] == "x-fabric-region"
    assert "x-fabric-region" in answer.error["message"]
    assert "eu-west" in answer.error["message"]
    assert "retry-after" in answer.headers
    assert far.idle
    assert silent.idle
    entry = await site.entry()
    assert (entry.outcome, entry.node_id, entry.attempts) == ("refused", None, 0)


async def test_a_model_that_nobody_has_is_still_not_found() -> None:
    site = Site()
    site.node(region="eu-west")
    answer = await ask(site, "eu-west", {**ASK, "model": "huge"}).answer()
    assert (answer.status, answer.code) == (404, "model_not_found")


async def test_a_path_that_only_another_region_can_be_asked_is_no_path_here() -> None:
    site = Site()
    site.node(region="eu-west", paths=[CHAT])
    site.node(region="us-east", paths=[CHAT, "/v1/responses"])
    answer = await ask(site, "eu-west", path="/v1/responses").answer()
    assert (answer.status, answer.code) == (404, "path_not_supported")
    assert answer.error["message"].endswith(f"Supported: {CHAT}.")


async def test_an_alias_means_the_model_that_is_served_there() -> None:
    site = Site(aliases={"fast": ("tiny", "small")})
    site.node(["tiny"], region="us-east")
    near = site.node(["small"], region="eu-west")
    user = ask(site, "eu-west", {**ASK, "model": "fast"})
    call = await near.call()
    assert b'"small"' in await call.whole_body()
    call.answer(200, OK)
    assert (await user.answer()).status == 200


async def test_who_waits_for_a_region_is_served_by_no_other_and_holds_nobody_up() -> None:
    site = Site()
    far, near = site.node(region="us-east", slots=1), site.node(region="eu-west", slots=1)
    here, there = ask(site, "eu-west"), ask(site, "us-east")
    running, elsewhere = await near.call(), await far.call()
    patient = ask(site, "eu-west")
    await site.queued(1)
    anywhere = ask(site, "us-east,eu-west")
    await site.queued(2)
    elsewhere.answer(200, OK)  # a slot that the first in line may not have
    (await far.call()).answer(200, OK)
    assert (await anywhere.answer()).status == 200
    assert site.admission.waiting == 1
    running.answer(200, OK)
    (await near.call()).answer(200, OK)
    for user in (here, there, patient):
        assert (await user.answer()).status == 200
    assert far.idle


async def test_how_long_it_takes_to_be_served_goes_by_the_slots_of_the_region() -> None:
    site = Site()
    near = site.node(region="eu-west", slots=1)
    site.registry.take(near.engine, "", 0.0)
    site.node(region="us-east", slots=4)
    requirements = Requirements("tiny", regions=frozenset({"eu-west"}))
    waits = asyncio.create_task(site.admission.admit(requirements, request_id="req_1"))
    await site.queued(1)
    place = site.admission.place("req_1")
    assert place is not None
    assert (place.position, place.estimate) == (1, DEFAULT_SERVICE_SECONDS)
    site.registry.release(near.engine, "")
    assert (await waits).engine is near.engine


async def test_a_second_attempt_stays_in_the_region() -> None:
    site = Site()
    far = site.node(region="us-east")
    near = [site.node(region="eu-west") for _ in range(2)]
    user = ask(site, "eu-west")
    for node in near:
        node.refuses = Code.ENGINE_DOWN
    answer = await user.answer()
    assert (answer.status, answer.code) == (502, "upstream_error")
    assert far.idle
    entry = await site.entry()
    assert entry.attempts == 2


async def test_a_stalled_engine_is_not_given_up_for_one_of_another_region() -> None:
    site = Site(timeouts=replace(PATIENT, stall=30.0))
    near = site.node(region="eu-west")
    user = ask(site, "eu-west")
    call = await near.call()
    far = site.node(region="us-east")
    site.wait(31)
    call.answer(200, OK)
    assert (await user.answer()).status == 200
    assert (call.reset, far.idle) == (None, True)
    entry = await site.entry()
    assert entry.attempts == 1


async def test_an_engine_that_is_avoided_leaves_its_region_without_one() -> None:
    site = Site()
    near, far = site.node(region="eu-west"), site.node(region="us-east")
    for _ in range(3):
        user = ask(site, "eu-west")
        (await near.call()).fail(Code.ENGINE_FAILED)
        assert (await user.answer()).status == 502
    answer = await ask(site, "eu-west").answer()
    assert (answer.status, answer.error["param"]) == (503, "x-fabric-region")
    assert far.idle


@pytest.mark.parametrize("another", [True, False])
async def test_a_lost_stream_goes_on_in_its_region_or_not_at_all(another: bool) -> None:
    site = Site()
    near = site.node(region="eu-west", kind="llama-server")
    far = site.node(region="us-east", kind="llama-server")
    user = ask(site, "eu-west", STREAM, x_fabric_failover="continue")
    call = await near.call()
    call.begin_stream()
    call.data(chunk("Once "))
    await user.until(b"Once ")
    other = site.node(region="eu-west" if another else "", kind="llama-server")
    near.vanish()
    near.leave()
    if another:
        (await other.call()).stream_all(chunk("upon"), chunk(None), DONE)
    answer = await user.answer()
    assert (b"upon" in answer.body) is another
    assert (b"upstream_lost" in answer.body) is not another
    assert far.idle
    assert other.idle


async def test_what_is_needed_is_looked_for_in_the_region_alone() -> None:
    site = Site()
    near = site.node([ModelReport("tiny", capabilities=["completion"])], region="eu-west")
    far = site.node([ModelReport("tiny", capabilities=["completion", "tools"])], region="us-east")
    user = ask(site, "eu-west", {**ASK, "tools": [{}]})
    (await near.call()).answer(200, OK)
    assert (await user.answer()).status == 200
    assert far.idle
