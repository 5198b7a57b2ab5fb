"""What clients find in the head of every answer, and what browsers may see of it."""

from __future__ import annotations

import re
import time

import pytest

from protocol.errors import Code
from tests.site import ASK, CHAT, DONE, STREAM, Site, chunk
from tests.users import Answer, MemoryUser, request


async def answered(site: Site, path: str = CHAT, body: object = ASK, **headers: str) -> Answer:
    node = site.node(paths=[path])
    user = site.user()
    user.send(request("POST", path, body, **site.key, **headers))
    (await node.call()).answer(200, b'{"done":true}')
    return await user.answer()


@pytest.mark.parametrize("path", [CHAT, "/v1/responses", "/v1/embeddings", "/rerank"])
async def test_openais_clients_find_what_openai_sends(path: str) -> None:
    answer = await answered(Site(), path)
    assert answer.headers["openai-version"] == "2020-10-01"
    assert int(answer.headers["openai-processing-ms"]) >= 0
    assert "request-id" not in answer.headers


async def test_streams_and_errors_have_the_same_headers_as_answers() -> None:
    site = Site()
    node = site.node()
    user = site.user()
    user.send(request("POST", CHAT, STREAM, **site.key))
    (await node.call()).stream_all(chunk("a"), chunk(None), DONE)
    for answer in (
        await user.answer(),
        await user.ask("POST", CHAT, b"{", **site.key),
        await user.ask("GET", "/nothing"),
        await user.ask("GET", "/v1/models", **site.key),
    ):
        assert answer.headers["openai-version"] == "2020-10-01"
        assert answer.headers["openai-processing-ms"].isdigit()


async def test_ollamas_clients_find_nothing_of_others() -> None:
    answer = await answered(Site(), "/api/chat")
    assert not [name for name in answer.headers if name.startswith("openai-")]
    assert "request-id" not in answer.headers


@pytest.mark.parametrize("name", ["x-request-id", "x-client-request-id"])
async def test_a_clients_own_id_comes_back_beside_ours(name: str) -> None:
    site = Site()
    answer = await answered(site, **{name: "trace-7/9"})
    assert answer.headers["x-client-request-id"] == "trace-7/9"
    assert (await site.entry()).request_id == answer.headers["x-request-id"] != "trace-7/9"


async def test_an_id_begins_with_the_time_in_milliseconds() -> None:
    new_id = Site().edge.new_id
    before, ids, after = time.time(), [new_id() for _ in range(9)], time.time()
    for one in ids:
        found = re.fullmatch("req_([0-9a-f]{11})[0-9a-f]{13}", one)
        assert found is not None
        assert int(before * 1000) <= int(found[1], 16) <= int(after * 1000)
    assert len(set(ids)) == 9


@pytest.mark.parametrize("value", ["x" * 129, "a b", "a\tb", "\xe9", ""])
async def test_an_id_that_is_none_does_not_come_back(value: str) -> None:
    answer = await answered(Site(), **{"x-request-id": value})
    assert "x-client-request-id" not in answer.headers


async def refused(user: MemoryUser, site: Site, body: object, **headers: str) -> Answer:
    user.send(request("POST", CHAT, body, **{**site.key, **headers}))
    return await user.answer()


async def test_clients_are_told_whether_trying_again_is_of_use() -> None:
    site = Site()
    user = site.user()
    pointless = [
        await refused(user, site, b"{"),
        await refused(user, site, {**ASK, "model": "none"}),
        await refused(user, site, ASK, authorization="Bearer x"),
        await refused(user, site, ASK, **site.make_key(models=["other"])),
        await user.ask("PATCH", CHAT),
    ]
    assert [answer.status for answer in pointless] == [400, 404, 401, 403, 405]
    for answer in pointless:
        assert answer.headers["x-should-retry"] == "false"
        assert "retry-after" not in answer.headers
    node = site.node()
    node.refuses = Code.REFUSED
    nothing_done = await refused(user, site, ASK)
    assert (nothing_done.status, nothing_done.headers["x-should-retry"]) == (503, "true")
    seconds, milliseconds = (
        int(nothing_done.headers[name]) for name in ("retry-after", "retry-after-ms")
    )
    assert 0 < milliseconds <= seconds * 1000
    node.refuses = Code.ENGINE_FAILED
    assert "x-should-retry" not in (await refused(user, site, ASK)).headers, "that may be wished"


async def test_browsers_may_send_what_clients_send_and_see_what_they_look_for() -> None:
    site = Site()
    user = site.user()
    origin = {"origin": "https://app.example"}
    answer = await user.ask("OPTIONS", "/v1/messages", **origin)
    assert answer.status == 204
    allowed = answer.headers["access-control-allow-headers"].split(", ")
    for name in (
        *("authorization", "content-type", "openai-beta", "openai-organization", "openai-project"),
        *("x-api-key", "anthropic-version", "anthropic-beta", "x-stainless-retry-count"),
        *("x-fabric-failover", "x-fabric-region"),
    ):
        assert name in allowed
    asked = {"access-control-request-headers": "authorization, x-stainless-new"}
    answer = await user.ask("OPTIONS", CHAT, **origin, **asked)
    assert answer.headers["access-control-allow-headers"] == "authorization, x-stainless-new"
    answer = await user.ask("POST", CHAT, b"{", **site.key, **origin, **{"x-request-id": "mine"})
    assert answer.headers["access-control-allow-origin"] == "*"
    exposed = answer.headers["access-control-expose-headers"].split(", ")
    hidden = {"date", "content-type", "content-length", "connection"}
    for name in answer.headers:
        assert name in exposed or name in hidden or name.startswith("access-control-"), name
    for kind in ("requests", "tokens"):
        for what in ("limit", "remaining", "reset"):
            assert f"x-ratelimit-{what}-{kind}" in exposed
