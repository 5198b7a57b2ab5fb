"""The operator gives priority and a number of requests at once; whatever a request says."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from fabric_server.dialects.endpoints import ENDPOINTS, SHOW
from tests.site import ASK, CHAT, STREAM, Site
from tests.users import MemoryUser, request


def ask(site: Site, key: dict[str, str], body: Any = ASK, **headers: str) -> MemoryUser:
    user = site.user()
    user.send(request("POST", CHAT, body, **(key | headers)))
    return user


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("allowed", "asked", "given"),
    [
        ("medium", "high", "medium"),
        ("medium", "low", "low"),
        ("low", "high", "low"),
        ("low", None, "low"),
        ("high", "high", "high"),
        ("high", None, "medium"),
    ],
)
async def test_a_request_has_the_priority_that_its_key_allows(
    allowed: str, asked: str | None, given: str
) -> None:
    site = Site()
    node = site.node(slots=1)
    first = ask(site, site.key)
    call = await node.call()
    key = site.make_key(priority=allowed)
    user = ask(site, key) if asked is None else ask(site, key, x_fabric_priority=asked)
    await turns()
    [line] = site.admission.queues()
    waiting = dict(zip(("high", "medium", "low"), line.by_priority, strict=True))
    assert waiting == {name: int(name == given) for name in waiting}
    call.answer(200, b"{}")
    (await node.call()).answer(200, b"{}")
    answer = await user.answer()
    assert answer.status == 200
    assert answer.headers.get("x-fabric-priority") == (None if asked is None else given)
    await first.answer()


@pytest.mark.parametrize(("allowed", "most"), [("medium", 7), ("high", 16)])
async def test_a_user_beside_a_crowd_of_high_priority_gets_a_share(allowed: str, most: int) -> None:
    """The crowd was there first, and the user has a few requests."""
    site = Site()
    node = site.node(slots=1)
    crowd, key = site.make_key(priority=allowed), site.make_key()
    users = [ask(site, crowd, {**ASK, "is": "crowd"}, x_fabric_priority="high") for _ in range(30)]
    await turns()
    users += [ask(site, key, {**ASK, "is": "user"}) for _ in range(3)]
    await turns()
    served = []
    for _ in users:
        call = await node.call()
        served.append(json.loads(await call.whole_body())["is"])
        call.answer(200, b"{}")
    places = [place for place, who in enumerate(served, start=1) if who == "user"]
    assert len(places) == 3
    assert places[-1] <= most
    for user in users:
        assert (await user.answer()).status == 200


async def test_more_requests_at_once_than_the_key_may_have_are_refused() -> None:
    site = Site()
    node = site.node(slots=1)
    key = site.make_key(requests_at_once=2)
    running, waiting = ask(site, key), ask(site, key)
    call = await node.call()
    refused = await ask(site, key).answer()
    assert (refused.status, refused.code) == (429, "rate_limit_exceeded")
    assert "2 requests at once" in refused.body.decode()
    assert refused.headers["retry-after"] == "1"
    other = ask(site, site.key)
    waiting.hang_up()
    await turns()
    again = ask(site, key)
    for _ in range(2):
        call.answer(200, b"{}")
        call = await node.call()
    call.answer(200, b"{}")
    for user in (running, other, again):
        assert (await user.answer()).status == 200


JSON_PATHS = [path for path, one in ENDPOINTS.items() if not one.form and one is not SHOW]


@pytest.mark.parametrize("padding", ["", "x" * 300_000])
@pytest.mark.parametrize("value", [-5, 0, 1.5, "high", [], {}, True])
async def test_priority_inside_an_engine_is_not_for_sale(value: Any, padding: str) -> None:
    site = Site()
    site.node()
    rest = {**STREAM, "x": padding}
    for body in ({"priority": value, **rest}, {**rest, "priority": value}):
        answer = await ask(site, site.key, body).answer()
        assert (answer.status, answer.code) == (400, "invalid_value")
        assert json.loads(answer.body)["error"]["param"] == "priority"
        assert "x-fabric-priority" in answer.body.decode()


@pytest.mark.parametrize("path", JSON_PATHS)
async def test_no_path_takes_a_priority_in_its_body(path: str) -> None:
    site = Site()
    site.node()
    escaped = json.dumps({**ASK, "prompt": "x", "input": "x", "priority": 1})
    escaped = escaped.replace("priority", "prior\\u0069ty")
    user = site.user()
    user.send(request("POST", path, escaped.encode(), **site.key))
    answer = await user.answer()
    assert answer.status == 400
    assert b"x-fabric-priority" in answer.body


async def test_no_priority_is_as_good_as_none() -> None:
    site = Site()
    node = site.node()
    user = ask(site, site.key, {**ASK, "priority": None, "nested": {"priority": 5}})
    (await node.call()).answer(200, b"{}")
    assert (await user.answer()).status == 200


@pytest.mark.parametrize("padding", [0, 300_000])
async def test_no_form_takes_a_priority(padding: int) -> None:
    site = Site()
    site.node()
    fields = {"model": "tiny", "file": "x" * padding, "priority": "-5"}
    parts = "".join(
        f'--b\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    )
    user = site.user()
    headers = {**site.key, "content_type": "multipart/form-data; boundary=b"}
    path = "/v1/audio/transcriptions"
    user.send(request("POST", path, f"{parts}--b--\r\n".encode(), **headers))
    answer = await user.answer()
    assert (answer.status, answer.error["param"]) == (400, "priority")
