"""What users are told of a model whose nodes are away, paused or drained, and when."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pytest

from fabric_server.dialects.endpoints import SHOW
from fabric_server.routing.absence import AWAY, DOWN, DRAINED, LATER, PAUSED, SOON
from protocol.messages import EngineReport
from tests.site import ANSWER, ASK, CHAT, ScriptedNode, Site
from tests.users import Answer, request

SECRET = "paused: alice is gaming at /home/alice"
LISTS = ("/v1/models", "/v1/models/tiny")


def paused(node: ScriptedNode, back_at: float = 0.0) -> EngineReport:
    report = node.report(["tiny"], slots=0, healthy=False)
    return msgspec.structs.replace(report, problem=SECRET, paused=True, back_at=back_at)


def pause(site: Site, node: ScriptedNode, back_at: float = 0.0) -> None:
    site.registry.report(node.node, [paused(node, back_at)])


async def chat(site: Site, model: str = "tiny", **headers: str) -> Answer:
    return await site.user().ask("POST", CHAT, {**ASK, "model": model}, **site.key, **headers)


async def card(site: Site, name: str = "tiny") -> dict[str, Any]:
    answer = await site.user().ask("GET", "/v1/models", **site.key)
    (found,) = (one for one in answer.json["data"] if one["id"] == name)
    return dict(found)


def wait(answer: Answer) -> int:
    return int(answer.headers["retry-after"])


async def test_a_scheduled_node_s_users_are_told_when_it_can_be_back() -> None:
    site = Site()
    pause(site, site.node(), time.time() + 7200)
    answer = await chat(site)
    assert (answer.status, answer.code) == (503, "no_capacity")
    assert 7190 <= wait(answer) <= 7200
    assert PAUSED in answer.json["error"]["message"]
    assert "can be back at 20" in answer.json["error"]["message"]
    assert "alice" not in answer.body.decode()
    shown = await card(site)
    assert shown["available"] is False
    assert shown["unavailable_reason"].startswith(f"{PAUSED} and can be back at ")
    assert 7190 <= shown["back_at"] - time.time() <= 7201
    one = await site.user().ask("GET", "/v1/models/tiny", **site.key)
    assert one.json == shown


@pytest.mark.parametrize(
    ("path", "ask"),
    [
        ("/v1/messages", {**ASK, "max_tokens": 5}),
        ("/api/chat", ASK),
        ("/v1/responses", {"model": "tiny", "input": "Hi"}),
        ("/v1/embeddings", {"model": "tiny", "input": "Hi"}),
    ],
)
async def test_every_dialect_is_told(path: str, ask: dict[str, Any]) -> None:
    site = Site()
    pause(site, site.node(paths=[path]), time.time() + 7200)
    answer = await site.user().ask("POST", path, ask, **site.key)
    assert answer.status == 503
    assert 7190 <= wait(answer) <= 7200
    error = answer.json["error"]
    assert PAUSED in (error if isinstance(error, str) else error["message"])


async def test_the_first_node_that_can_be_back_counts_and_a_day_at_most() -> None:
    site = Site()
    now = time.time()
    first, second = site.node(), site.node()
    pause(site, second)
    pause(site, first, now + 30 * 86_400)
    assert wait(await chat(site)) == 86_400
    pause(site, second, now + 600)
    assert 590 <= wait(await chat(site)) <= 600
    pause(site, second)
    assert wait(await chat(site)) == 86_400
    pause(site, first)
    assert wait(await chat(site)) == LATER
    assert "back_at" not in await card(site)
    pause(site, first, now - 1)
    assert wait(await chat(site)) == 1, "it is expected at any moment"
    assert "back_at" not in await card(site)


@pytest.mark.parametrize("back_at", [1.0, 253_402_300_799.0])
async def test_a_time_that_makes_no_sense_is_not_told(back_at: float) -> None:
    site = Site()
    pause(site, site.node(), back_at)
    answer = await chat(site)
    assert (answer.status, wait(answer)) == (503, LATER)
    assert answer.json["error"]["message"].endswith(f"{PAUSED}.")
    assert "back_at" not in await card(site)


async def test_each_other_reason_is_told_too() -> None:
    site = Site()
    node = site.node()

    async def told() -> tuple[str, int]:
        answer = await chat(site)
        assert (answer.status, answer.code) == (503, "no_capacity")
        reason = (await card(site))["unavailable_reason"].removesuffix(".")
        assert reason in answer.json["error"]["message"]
        return reason, wait(answer)

    site.registry.report(node.node, [node.report(["tiny"], healthy=False)])
    assert await told() == (DOWN, SOON)
    site.registry.report(node.node, [node.report(["tiny"])])
    node.node.drained = True
    assert await told() == (DRAINED, LATER)
    node.node.drained = False
    assert "available" not in await card(site)
    node.vanish()
    node.leave()
    assert await told() == (AWAY, SOON)


async def test_a_model_that_never_was_known_is_404_and_one_that_is_away_is_503() -> None:
    site = Site()
    node = site.node()
    assert (await chat(site, "none")).status == 404
    node.vanish()
    node.leave()
    for path in LISTS:
        answer = await site.user().ask("GET", path, **site.key)
        shown = answer.json["data"][0] if "data" in answer.json else answer.json
        assert (shown["id"], shown["available"]) == ("tiny", False)
    headers = {**site.key, "anthropic-version": "2023-06-01"}
    answer = await site.user().ask("GET", "/v1/models", **headers)
    assert [one["available"] for one in answer.json["data"]] == [False]
    answer = await site.user().ask("POST", SHOW.path, {"model": "tiny"}, **site.key)
    assert (answer.status, wait(answer)) == (503, SOON)
    assert AWAY in answer.json["error"]
    assert (await chat(site)).status == 503
    site.node()
    assert "available" not in await card(site)


async def test_ollama_s_lists_have_only_what_can_be_used() -> None:
    site = Site()
    node, gone = site.node(["tiny"]), site.node(["gone"])
    gone.leave()
    for path in ("/api/tags", "/ollama/api/tags"):
        answer = await site.user().ask("GET", path, **site.key)
        assert [row["name"] for row in answer.json["models"]] == ["tiny"]
    pause(site, node)
    for path in ("/api/tags", "/api/ps"):
        assert (await site.user().ask("GET", path, **site.key)).json == {"models": []}


async def test_what_a_key_may_not_use_is_not_told_to_it() -> None:
    site = Site()
    site.node(["mine"])
    pause(site, site.node(["tiny"]), time.time() + 7200)
    site.node(["gone"]).leave()
    key, user = site.make_key(models=["mine"]), site.user()
    answer = await user.ask("GET", "/v1/models", **key)
    assert [one["id"] for one in answer.json["data"]] == ["mine"]
    for name in ("tiny", "gone"):
        assert (await user.ask("GET", f"/v1/models/{name}", **key)).status == 404
        assert (await user.ask("POST", SHOW.path, {"model": name}, **key)).status == 404
        answer = await user.ask("POST", CHAT, {**ASK, "model": name}, **key)
        assert (answer.status, answer.code) == (403, "model_not_allowed")
        assert "retry-after" not in answer.headers


async def test_an_alias_means_what_can_be_used_else_what_is_connected_else_what_was() -> None:
    site = Site(aliases={"fast": ("never", "gone", "tiny", "other")})
    gone = site.node(["gone"])
    gone.leave()
    assert (await chat(site, "fast")).status == 503
    assert AWAY in (await card(site, "fast"))["unavailable_reason"]
    pause(site, site.node(["tiny"]), time.time() + 7200)
    assert 7190 <= wait(await chat(site, "fast")) <= 7200
    assert PAUSED in (await card(site, "fast"))["unavailable_reason"]
    other = site.node(["other"], slots=1)
    assert "available" not in await card(site, "fast")
    first, second = site.user(), site.user()
    for user in (first, second):  # the second waits: it is not refused for the model that is paused
        user.send(request("POST", CHAT, {**ASK, "model": "fast"}, **site.key))
    (await other.call()).answer(200, ANSWER)
    (await other.call()).answer(200, ANSWER)
    assert [(await user.answer()).status for user in (first, second)] == [200, 200]


async def test_a_region_is_told_only_of_its_own_nodes() -> None:
    site = Site()
    pause(site, site.node(region="eu"), time.time() + 7200)
    site.node(region="us").leave()
    inside = await chat(site, **{"x-fabric-region": "eu"})
    assert 7190 <= wait(inside) <= 7200
    outside = await chat(site, **{"x-fabric-region": "us"})
    assert (outside.status, wait(outside)) == (503, SOON)
    assert outside.json["error"]["message"].endswith("Retry shortly.")
