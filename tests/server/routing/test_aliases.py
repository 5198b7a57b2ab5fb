"""Public names for models: how they are written, and what they stand for at the moment."""

from __future__ import annotations

import json

import pytest

from fabric_server.config import Config
from fabric_server.dialects.endpoints import CHAT as CHAT_ENDPOINT
from fabric_server.dialects.endpoints import ENDPOINTS
from fabric_server.routing.aliases import parse_aliases, rename, resolve
from fabric_server.routing.capabilities import estimate_tokens, guess_capabilities
from fabric_server.routing.weights import parse_weights
from runtime.settings import Conflict
from tests.site import ASK, CHAT, Site
from tests.users import request


def test_an_alias_names_models_in_order() -> None:
    aliases = parse_aliases(["fast=qwen3:8b|llama3.1:8b", " big = gpt-oss "])
    assert aliases == {"fast": ("qwen3:8b", "llama3.1:8b"), "big": ("gpt-oss",)}
    assert parse_aliases([]) == {}


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["fast"], "not of the form"),
        (["=a"], "not of the form"),
        (["fast="], "not of the form"),
        (["fast=a||b"], "not of the form"),
        (["fast=a", "fast=b"], "twice"),
        (["fast=big", "big=a"], "itself an alias"),
        (["fast=fast"], "itself an alias"),
    ],
)
def test_what_is_no_alias_is_refused_before_the_server_starts(texts: list[str], said: str) -> None:
    with pytest.raises(Conflict, match=said):
        Config(aliases=tuple(texts))


def test_a_weight_is_a_number_above_nothing() -> None:
    assert parse_weights(["node_1=2", "attic = 0.5"]) == {"node_1": 2.0, "attic": 0.5}
    assert parse_weights(["region:eu-west=3"]) == {"region:eu-west": 3.0}
    for text in (
        "region:=2",
        "region:EU West=2",
        "node",
        "node=",
        "=2",
        "node=0",
        "node=-1",
        "node=inf",
        "node=nan",
        "node=x",
    ):
        with pytest.raises(Conflict, match="weights"):
            Config(weights=(text,))


def test_the_first_with_room_answers_else_the_first_that_is_served_else_the_first() -> None:
    aliases = parse_aliases(["fast=a|b|c"])

    def found(roomy: str, served: str) -> str:
        return resolve(aliases, "fast", roomy.__contains__, served.__contains__)

    assert found("abc", "abc") == "a"
    assert found("c", "bc") == "c"
    assert found("", "bc") == "b"
    assert found("", "") == "a"
    assert resolve(aliases, "other", bool, bool) == "other"


def test_only_the_model_s_own_name_is_exchanged() -> None:
    body = b'{"messages":[{"model":"fast"}], "model" : "fast","user":"fast"}'
    place = body.index(b'"fast","user"'), body.index(b',"user"')
    assert rename(body, place, 'a"b') == body.replace(b' "fast"', b' "a\\"b"')


async def test_an_escaped_name_of_the_field_is_its_name() -> None:
    site = Site(aliases={"fast": ("tiny",)})
    node, user = site.node(["tiny"]), site.user()
    body = b'{"messages":[{"model":"fast"}], "mod\\u0065l" : "fast"}'
    user.send(request("POST", CHAT, body, **site.key))
    sent = await (await node.call()).whole_body()
    assert sent == body.replace(b' "fast"', b' "tiny"')


# ── through the gateway ───────────────────────────────────────────────────────────────────────


async def test_an_alias_is_asked_by_its_real_name_and_billed_by_its_own() -> None:
    site = Site(aliases={"fast": ("gone", "tiny", "other")})
    node = site.node(["tiny"])
    user = site.user()
    user.send(request("POST", CHAT, {**ASK, "model": "fast"}, **site.key))
    call = await node.call()
    assert json.loads(await call.whole_body()) == ASK
    assert call.request.body_size == len(call.body)
    call.answer(200, b"{}")
    answer = await user.answer()
    assert answer.status == 200
    assert (await site.entry()).model == "fast"


async def test_an_alias_falls_back_while_its_first_model_is_full() -> None:
    site = Site(aliases={"fast": ("tiny", "other")})
    tiny, other = site.node(["tiny"]), site.node(["other"])
    tiny.engine.active = tiny.engine.slots
    user = site.user()
    user.send(request("POST", CHAT, {**ASK, "model": "fast"}, **site.key))
    call = await other.call()
    assert json.loads(await call.whole_body())["model"] == "other"
    call.answer(200, b"{}")
    assert (await user.answer()).status == 200


async def test_aliases_are_listed_while_they_stand_for_something() -> None:
    site = Site(aliases={"fast": ("gone", "tiny"), "big": ("gone",)})
    site.node(["tiny"])
    user = site.user()
    user.send(request("GET", "/v1/models", **site.key))
    listed = json.loads((await user.answer()).body)["data"]
    assert [model["id"] for model in listed] == ["fast", "tiny"]
    for name, status in (("fast", 200), ("big", 404)):
        user.send(request("GET", f"/v1/models/{name}", **site.key))
        assert (await user.answer()).status == status


async def test_a_key_for_an_alias_is_none_for_what_it_stands_for() -> None:
    site = Site(aliases={"fast": ("tiny",)})
    node = site.node(["tiny"])
    key = site.make_key(models=("fast",))
    user = site.user()
    user.send(request("POST", CHAT, ASK, **key))
    assert (await user.answer()).status == 403
    user.send(request("POST", CHAT, {**ASK, "model": "fast"}, **key))
    (await node.call()).answer(200, b"{}")
    assert (await user.answer()).status == 200


# ── what a body needs ─────────────────────────────────────────────────────────────────────────


def test_needs_are_read_from_keys_not_from_text() -> None:
    def needs(body: object, path: str = CHAT) -> set[str]:
        return set(guess_capabilities(ENDPOINTS[path], json.dumps(body).encode()))

    assert needs(ASK) == set()
    assert needs({**ASK, "tools": []}) == {"tools"}
    assert needs({"messages": [{"content": 'say "tools" and "image_url"'}]}) == set()
    picture = {"messages": [{"content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}
    assert needs({**picture, "tools": []}) == {"tools", "vision"}
    assert needs({"input": "x"}, "/v1/embeddings") == {"embeddings"}


def test_tokens_are_estimated_but_not_those_of_pictures() -> None:
    assert estimate_tokens(CHAT_ENDPOINT, 4000, frozenset()) == 1000
    assert estimate_tokens(CHAT_ENDPOINT, 4000, frozenset({"vision"})) == 0
    assert estimate_tokens(CHAT_ENDPOINT, None, frozenset()) == 0
