"""Other spellings that clients use: of paths, of the key's header, and of the model's name."""

from __future__ import annotations

import json

import pytest

from fabric_server.metering.naming import NamingMeter
from fabric_server.metering.openai import BodyMeter, StreamMeter
from fabric_server.routing.aliases import find_names, parse_aliases
from tests.server.dialects.paths import FORM, form
from tests.site import ASK, CHAT, Site
from tests.users import request

WHOLE = b'{"id":"x","model":"tiny","choices":[]}'


def asking(model: str) -> dict[str, object]:
    return {**ASK, "model": model}


@pytest.mark.parametrize("header", ["api_key", "x_api_key"])
async def test_a_key_is_taken_from_azure_s_header(header: str) -> None:
    site = Site()
    node, user = site.node(["tiny"]), site.user()
    key = site.key["authorization"].removeprefix("Bearer ")
    user.send(request("POST", CHAT, ASK, **{header: key}))
    (await node.call()).answer(200, WHOLE)
    assert (await user.answer()).status == 200
    answer = await user.ask("POST", CHAT, b"{}", **{header: "nonsense"})
    assert (answer.status, answer.code) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    "path",
    [
        "/chat/completions",
        "/openai/v1/chat/completions",
        "/openai/chat/completions?api-version=2024-10-21",
        "/openai/deployments/tiny/chat/completions?api-version=2024-10-21",
    ],
)
async def test_a_path_is_known_in_each_spelling(path: str) -> None:
    site = Site()
    node, user = site.node(["tiny"]), site.user()
    user.send(request("POST", path, ASK, **site.key))
    call = await node.call()
    assert call.request.path == CHAT
    call.answer(200, WHOLE)
    assert (await user.answer()).status == 200
    assert (await site.entry()).path == CHAT


@pytest.mark.parametrize(
    "path",
    ["/models", "/openai/models", "/openai/v1/models", "/models/tiny", "/openai/models/tiny"],
)
async def test_models_are_listed_in_each_spelling(path: str) -> None:
    site = Site()
    site.node(["tiny"])
    user = site.user()
    user.send(request("GET", path, **site.key))
    answer = await user.answer()
    assert (answer.status, b'"tiny"' in answer.body) == (200, True)


@pytest.mark.parametrize(
    "path", ["/openai", "/openai/x", "/x", "/v1/openai/models", "/openai/deployments/tiny/x"]
)
async def test_what_is_no_spelling_of_a_path_is_404(path: str) -> None:
    answer = await Site().user().ask("POST", path, b"{}")
    assert (answer.status, answer.code) == (404, "unknown_path")


@pytest.mark.parametrize("given", [{}, {"model": "gpt-4"}])
async def test_a_deployment_is_the_model_whatever_the_body_says(given: dict[str, str]) -> None:
    site = Site()
    node, user = site.node(["ti/ny:1"]), site.user()
    messages = [{"role": "user", "content": "x" * 300_000}]
    path = "/openai/deployments/ti%2Fny%3A1/chat/completions"
    for body in ({"messages": []}, {"messages": messages}):
        user.send(request("POST", path, {**body, **given}, **site.key))
        call = await node.call()
        assert json.loads(await call.whole_body()) == {**body, "model": "ti/ny:1"}
        call.answer(200, WHOLE)
        assert (await user.answer()).status == 200


async def test_a_deployment_is_the_model_of_a_form_that_names_none() -> None:
    site = Site()
    path = "/openai/deployments/tiny/audio/transcriptions"
    node, user = site.node(["tiny"], paths=["/v1/audio/transcriptions"]), site.user()
    user.send(request("POST", path, form(language="en"), **site.key, content_type=FORM))
    call = await node.call()
    assert b'name="model"\r\n\r\ntiny\r\n' in await call.whole_body()
    call.answer(200, b'{"text":"x"}')
    assert (await user.answer()).status == 200


async def test_a_deployment_needs_a_key_before_its_body_is_read() -> None:
    user = Site().user()
    length = {"content-length": "9999"}
    user.send(request("POST", "/openai/deployments/tiny/chat/completions", None, **length))
    assert (await user.answer()).status == 401


async def test_a_deployments_key_over_its_rate_is_refused_before_its_body_is_read() -> None:
    site = Site()
    node, user = site.node(["tiny"]), site.user()
    key, path = site.make_key(requests_per_minute=1), "/openai/deployments/tiny/chat/completions"
    user.send(request("POST", path, ASK, **key))
    (await node.call()).answer(200, WHOLE)
    answer = await user.answer()
    assert (answer.status, answer.headers["x-ratelimit-remaining-requests"]) == (200, "0")
    user.send(request("POST", path, None, **key, content_length="9999"))
    assert (await user.answer()).status == 429


# ── the name asked for comes back ─────────────────────────────────────────────────────────────


async def test_an_alias_comes_back_as_the_model() -> None:
    site = Site(aliases={"fast": ("tiny",)})
    node, user = site.node(["tiny"]), site.user()
    user.send(request("POST", CHAT, asking("fast"), **site.key))
    call = await node.call()
    call.answer(200, WHOLE)
    answer = await user.answer()
    assert json.loads(answer.body)["model"] == "fast"
    user.send(request("POST", CHAT, {**asking("fast"), "stream": True}, **site.key))
    call = await node.call()
    text = json.dumps({"model": "tiny"})
    chunk = {"model": "tiny", "choices": [{"delta": {"content": text}, "index": 0}]}
    end = {"model": "tiny", "choices": [{"delta": {}, "index": 0, "finish_reason": "stop"}]}
    stream = b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in (chunk, end))
    call.answer(200, stream + b"data: [DONE]\n\n", content_type="text/event-stream")
    answer = await user.answer()
    told = [json.loads(line[6:]) for line in answer.body.splitlines() if line[6:7] == b"{"]
    assert told == [{**chunk, "model": "fast"}, {**end, "model": "fast"}]


@pytest.mark.parametrize("space", ["", " "])
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize("real", ["tiny", "org/ti-né"])
def test_the_name_comes_back_however_the_bytes_are_cut(space: str, size: int, real: str) -> None:
    text = f'"model": "{real}" and \\ and {{"model":"{real}"}}'
    whole = f'{{"model"{space}:{space}{json.dumps(real)},"x":{json.dumps(text)}}}'
    for body, meter in ((whole, BodyMeter()), (f"data: {whole}\n\n", StreamMeter(True))):
        naming = NamingMeter(meter, real, "fast")
        data = body.encode()
        told = [naming.feed(data[at : at + size]) for at in range(0, len(data), size)]
        named = body.replace(json.dumps(real), '"fast"', 1)
        assert b"".join(told) + naming.end() == named.encode()


# ── wildcards ─────────────────────────────────────────────────────────────────────────────────


def test_the_longest_wildcard_that_fits_counts() -> None:
    aliases = parse_aliases(["gpt-*=small", "gpt-4*=large|small", "gpt-4=exact", "*=any"])
    found = {name: find_names(aliases, name) for name in ("gpt-4", "gpt-4o", "gpt-3.5", "x")}
    assert found == {
        "gpt-4": ("exact",),
        "gpt-4o": ("large", "small"),
        "gpt-3.5": ("small",),
        "x": ("any",),
    }
    assert find_names(parse_aliases(["gpt-*=small"]), "my-gpt-4") is None


async def test_a_wildcard_stands_for_names_that_no_node_serves() -> None:
    site = Site(aliases={"gpt-*": ("tiny",)})
    node, user = site.node(["tiny", "gpt-oss"]), site.user()
    for asked, real in (("gpt-4o", "tiny"), ("gpt-oss", "gpt-oss")):
        user.send(request("POST", CHAT, asking(asked), **site.key))
        call = await node.call()
        assert json.loads(await call.whole_body())["model"] == real
        call.answer(200, json.dumps({"model": real, "choices": []}).encode())
        assert json.loads((await user.answer()).body)["model"] == asked
    answer = await user.ask("POST", CHAT, json.dumps(asking("other")).encode(), **site.key)
    assert (answer.status, answer.code) == (404, "model_not_found")


async def test_names_that_fit_a_wildcard_leave_nothing_behind() -> None:
    site = Site(aliases={"*": ("tiny",)})
    node, user = site.node(["tiny"]), site.user()
    for number in range(5):
        user.send(request("POST", CHAT, asking(f"name-{number}"), **site.key))
        (await node.call()).answer(200, WHOLE)
        assert (await user.answer()).status == 200
    assert set(site.admission._service) == {"tiny"}


async def test_a_wildcard_is_not_listed_but_its_names_are_known() -> None:
    site = Site(aliases={"gpt-*": ("tiny",)})
    site.node(["tiny"])
    user = site.user()
    user.send(request("GET", "/v1/models", **site.key))
    assert [one["id"] for one in json.loads((await user.answer()).body)["data"]] == ["tiny"]
    for name, status in (("gpt-4", 200), ("other", 404)):
        user.send(request("GET", f"/v1/models/{name}", **site.key))
        assert (await user.answer()).status == status


async def test_a_key_for_some_models_gets_no_other_by_a_wildcard() -> None:
    site = Site(aliases={"*": ("tiny",)})
    site.node(["tiny"])
    key = site.make_key(models=["other"])
    answer = await site.user().ask("POST", CHAT, json.dumps(asking("gpt-4")).encode(), **key)
    assert (answer.status, answer.code) == (403, "model_not_allowed")
