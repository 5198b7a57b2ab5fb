"""What the server answers itself: models, versions, and what is not possible here."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any

import pytest

from fabric_server.dialects.endpoints import SHOW
from fabric_server.gateway.models import MAX_SHOW_BODY
from protocol.messages import ModelReport
from tests.site import Site
from tests.users import Answer, MemoryUser, request

BIG = ModelReport(
    "qwen3:8b",
    size=5_200_000_000,
    context_length=8192,
    loaded=True,
    capabilities=["completion", "tools"],
)
SMALL = ModelReport("tiny", size=300, context_length=2048, loaded=False)
OPENAI_FIELDS = ["id", "object", "created", "owned_by"]
DETAILS = ["parent_model", "format", "family", "families", "parameter_size", "quantization_level"]


def site_with_models() -> Site:
    site = Site(aliases={"fast": ("none", "tiny")})
    site.node([BIG, SMALL], kind="ollama")
    site.node([ModelReport("tiny", context_length=4096), "org/plain"])
    return site


async def get(site: Site, path: str, **headers: str) -> Answer:
    return await site.user().ask("GET", path, **{**site.key, **headers})


# ── OpenAI's list ─────────────────────────────────────────────────────────────────────────────


async def test_models_are_listed_with_the_longest_context_that_is_served() -> None:
    answer = await get(site_with_models(), "/v1/models")
    assert list(answer.json) == ["object", "data"]
    cards = {card["id"]: card for card in answer.json["data"]}
    assert list(cards) == ["fast", "org/plain", "qwen3:8b", "tiny"]
    assert list(cards["org/plain"]) == OPENAI_FIELDS, "nobody tells its context"
    for name, context in (("fast", 4096), ("tiny", 4096), ("qwen3:8b", 8192)):
        card = cards[name]
        assert list(card) == [*OPENAI_FIELDS, "context_window", "max_model_len"]
        assert card["context_window"] == card["max_model_len"] == context
        assert (card["object"], card["owned_by"]) == ("model", "fabric")
        assert isinstance(card["created"], int)


@pytest.mark.parametrize("name", ["tiny", "qwen3:8b", "qwen3%3A8b", "org/plain", "org%2Fplain"])
async def test_one_model_is_found_by_its_name_whatever_is_in_it(name: str) -> None:
    answer = await get(site_with_models(), f"/v1/models/{name}")
    assert answer.status == 200
    assert answer.json["id"] == name.replace("%3A", ":").replace("%2F", "/")


async def test_only_what_the_key_may_use_is_listed_or_found() -> None:
    site = site_with_models()
    key = site.make_key(models=["tiny"])
    user = site.user()
    for path, field, inside in (
        ("/v1/models", "id", "data"),
        ("/api/tags", "name", "models"),
        ("/ollama/api/tags", "model", "models"),
    ):
        answer = await user.ask("GET", path, **key)
        assert [row[field] for row in answer.json[inside]] == ["tiny"]
    assert (await user.ask("GET", "/api/ps", **key)).json == {"models": []}
    for path in ("/v1/models/qwen3:8b", "/v1/models/none"):
        assert (await user.ask("GET", path, **key)).code == "model_not_found"
    for name in ("qwen3:8b", "none"):
        answer = await user.ask("POST", "/api/show", {"model": name}, **key)
        assert (answer.status, answer.json) == (404, {"error": f"model '{name}' not found"})
    for path in ("/v1/models", "/v1/models/tiny", "/api/tags", "/api/ps"):
        assert (await user.ask("GET", path)).status == 401


# ── Anthropic's ───────────────────────────────────────────────────────────────────────────────


async def test_who_names_anthropics_version_gets_anthropics_list() -> None:
    site = site_with_models()
    headers = {"anthropic-version": "2023-06-01"}
    answer = await get(site, "/v1/models", **headers)
    assert list(answer.json) == ["data", "has_more", "first_id", "last_id"]
    first = answer.json["data"][0]
    fields = ["type", "id", "display_name", "created_at", "lifecycle", "max_input_tokens"]
    assert list(first) == fields
    assert (first["lifecycle"], first["max_input_tokens"]) == ("active", 4096)
    nobody_tells = next(row for row in answer.json["data"] if row["id"] == "org/plain")
    assert list(nobody_tells) == fields[:-1]
    assert (first["type"], first["id"], answer.json["first_id"]) == ("model", "fast", "fast")
    datetime.fromisoformat(first["created_at"])
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
    answer = await get(site, "/v1/models/none", **headers)
    assert (answer.status, answer.json["error"]["type"]) == (404, "not_found_error")
    assert (await get(site, "/v1/models/tiny", **headers)).json["type"] == "model"


# ── Ollama's ──────────────────────────────────────────────────────────────────────────────────


async def test_tags_are_rows_as_ollama_has_them() -> None:
    site = site_with_models()
    answer = await get(site, "/api/tags")
    rows = {row["name"]: row for row in answer.json["models"]}
    assert list(rows) == ["fast", "org/plain", "qwen3:8b", "tiny"]
    for name, row in rows.items():
        assert list(row) == [
            *("name", "model", "modified_at", "size", "digest", "details", "capabilities")
        ]
        assert row["model"] == name
        assert re.fullmatch("[0-9a-f]{64}", row["digest"])
        assert list(row["details"])[:6] == DETAILS
        datetime.fromisoformat(row["modified_at"])
    big = rows["qwen3:8b"]
    assert (big["size"], big["capabilities"]) == (5_200_000_000, ["completion", "tools"])
    assert (big["details"]["format"], big["details"]["context_length"]) == ("gguf", 8192)
    assert len({row["digest"] for row in rows.values()}) == 4
    assert (await get(site, "/ollama/api/tags")).body == answer.body
    assert (await get(site, "/api/tags/")).body == answer.body


async def test_only_what_is_loaded_runs() -> None:
    [row] = (await get(site_with_models(), "/api/ps")).json["models"]
    assert list(row) == [
        *("name", "model", "size", "digest", "details", "expires_at", "size_vram", "context_length")
    ]
    assert (row["name"], row["context_length"]) == ("qwen3:8b", 8192)
    datetime.fromisoformat(row["expires_at"])


async def test_a_model_of_another_engine_is_shown_from_what_its_node_reports() -> None:
    site = site_with_models()
    user = site.user()
    for body in ({"model": "qwen3:8b"}, {"name": "qwen3:8b", "verbose": True}):
        answer = await user.ask("POST", "/api/show", body, **site.key)
        shown = answer.json
        assert list(shown) == [
            *("parameters", "template", "details", "model_info", "capabilities", "modified_at")
        ]
        assert shown["capabilities"] == ["completion", "tools"]
        architecture = shown["model_info"]["general.architecture"]
        assert shown["model_info"][f"{architecture}.context_length"] == 8192
        assert list(shown["details"]) == DETAILS
    answer = await user.ask("POST", "/ollama/api/show", {"model": "tiny:latest"}, **site.key)
    assert answer.status == 200
    assert not site.ledger, "nobody was asked"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"{}", b'{"model":7}', b'{"model":""}', b"[" * 5000, b'{"model":"\xff"}'],
)
async def test_a_question_for_a_model_that_names_none_is_refused(body: bytes) -> None:
    site = site_with_models()
    answer = await site.user().ask("POST", "/api/show", body, **site.key)
    assert answer.status == 400
    assert list(answer.json) == ["error"]


async def test_a_question_for_a_model_is_bounded() -> None:
    site = site_with_models()
    body = {"model": "tiny", "filler": "x" * MAX_SHOW_BODY}
    assert (await site.user().ask("POST", "/api/show", body, **site.key)).status == 413


@pytest.mark.parametrize("path", ["/api/show", "/ollama/api/show"])
async def test_an_ollama_shows_its_models_itself_but_not_its_disk(path: str) -> None:
    site = Site()
    node = site.node(["tiny:latest"], kind="ollama", paths=[SHOW.path, "/api/chat"])
    user = site.user()
    asked = b'{"model":"tiny","Model":"secret","verbose":true}'
    user.send(request("POST", path, asked, **site.key))
    call = await node.call()
    assert (call.request.path, json.loads(await call.whole_body())) == (
        "/api/show",
        {"model": "tiny"},
    ), "what two readers could understand differently does not reach it"
    shown = {"modelfile": "FROM /home/ada/blob", "template": "x", "details": {"family": "llama"}}
    call.answer(200, json.dumps(shown).encode())
    answer = await user.answer()
    assert answer.json == {"template": "x", "details": {"family": "llama"}}
    assert answer.headers["content-length"] == str(len(answer.body))
    entry = await site.entry()
    assert (entry.outcome, entry.model, entry.path) == ("ok", "tiny", path)
    assert entry.prompt_tokens is None


async def test_an_error_of_the_ollama_that_was_asked_to_show_passes() -> None:
    site = Site()
    node = site.node(["tiny"], kind="ollama", paths=[SHOW.path])
    user = site.user()
    user.send(request("POST", "/api/show", {"model": "tiny"}, **site.key))
    (await node.call()).answer(404, b'{"error":"gone"}')
    answer = await user.answer()
    assert (answer.status, answer.json) == (404, {"error": "gone"})


@pytest.mark.parametrize("start", ["/api", "/ollama/api"])
@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("POST", "pull"),
        ("POST", "push"),
        ("POST", "create"),
        ("POST", "copy"),
        ("DELETE", "delete"),
        ("POST", "blobs/sha256:abc"),
        ("HEAD", "blobs/sha256:abc"),
    ],
)
async def test_models_are_not_managed_here(start: str, method: str, name: str) -> None:
    site = Site()
    answer = await site.user().ask(method, f"{start}/{name}", **site.key)
    assert answer.status == 403
    if method != "HEAD":
        assert list(answer.json) == ["error"]
        assert "owners of the nodes" in answer.json["error"]
    assert answer.headers["x-should-retry"] == "false"


# ── what clients look for first ───────────────────────────────────────────────────────────────


async def test_an_ollama_is_found_where_clients_look_for_one() -> None:
    user = Site().user()
    for path in ("/api/version", "/ollama/api/version"):
        version = (await user.ask("GET", path)).json["version"]
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)
        assert tuple(map(int, version.split("."))) >= (0, 13, 3), "the first with /v1/responses"
    for path, headers in (
        ("/ollama", {}),
        ("/ollama/", {}),
        ("/", {"user-agent": "ollama/0.13.5 (amd64 linux) Go/go1.24"}),
        ("/", {"user-agent": "ollama-python/0.6.0"}),
    ):
        answer = await user.ask("GET", path, **headers)
        assert answer.body == b"Ollama is running"
        assert answer.headers["content-type"].startswith("text/plain")
    assert (await user.ask("GET", "/", **{"user-agent": "curl/8"})).json["name"] == "fabric"


@pytest.mark.parametrize(
    "path",
    ["/", "/ollama", "/v1/models", "/v1/models/tiny", "/api/tags", "/api/ps", "/api/version"],
)
async def test_head_is_get_without_its_body(path: str) -> None:
    site = site_with_models()
    user: MemoryUser = site.user()
    head = await user.ask("HEAD", path, **site.key)
    answer: Any = await user.ask("GET", path, **site.key)
    assert (head.status, head.body) == (200, b"")
    for name in ("content-type", "content-length"):
        assert head.headers[name] == answer.headers[name]


# ── the weights ───────────────────────────────────────────────────────────────────────────────

SHA, OTHER = "42182419e950" * 5 + "abcd", "9f438cb9cd58" * 5 + "0123"
Q4 = ModelReport(
    "tiny",
    digest=SHA,
    quantization="Q4_K_M",
    family="llama",
    parameter_size="8.0B",
    format="gguf",
)
Q8 = ModelReport("tiny", digest=OTHER, quantization="Q8_0", family="llama", parameter_size="8.0B")
UNTOLD = ModelReport("tiny")


def weights_of(answer: Answer) -> dict[str, Any]:
    known = [*OPENAI_FIELDS, "context_window", "max_model_len"]
    return {name: value for name, value in answer.json.items() if name not in known}


async def test_weights_that_all_engines_have_are_shown_in_every_list() -> None:
    site = Site()
    site.node([Q4], kind="ollama"), site.node([Q4], kind="llama-server")
    told = {
        "quantization": "Q4_K_M",
        "digest": SHA,
        "family": "llama",
        "parameter_size": "8.0B",
    }
    assert weights_of(await get(site, "/v1/models/tiny")) == told
    [card] = (await get(site, "/v1/models")).json["data"]
    assert card["digest"] == SHA
    details = {
        "parent_model": "",
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "8.0B",
        "quantization_level": "Q4_K_M",
    }
    [row] = (await get(site, "/api/tags")).json["models"]
    assert (row["digest"], row["details"]) == (SHA, details)
    shown = await site.user().ask("POST", "/api/show", {"model": "tiny"}, **site.key)
    assert shown.json["details"] == details


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ([UNTOLD, UNTOLD], {}),
        (
            [Q4, Q8, Q8],
            {
                "family": "llama",
                "parameter_size": "8.0B",
                "variants": [
                    {"quantization": "Q8_0", "digest": OTHER, "engines": 2},
                    {"quantization": "Q4_K_M", "digest": SHA, "engines": 1},
                ],
            },
        ),
        (
            [Q4, ModelReport("tiny", quantization="Q4_K_M")],
            {
                "quantization": "Q4_K_M",
                "variants": [
                    {"quantization": "Q4_K_M", "digest": None, "engines": 1},
                    {"quantization": "Q4_K_M", "digest": SHA, "engines": 1},
                ],
            },
        ),
        (
            [Q4, UNTOLD],
            {
                "variants": [
                    {"quantization": None, "digest": None, "engines": 1},
                    {"quantization": "Q4_K_M", "digest": SHA, "engines": 1},
                ],
            },
        ),
    ],
)
async def test_weights_that_engines_do_not_share_are_listed_and_none_is_claimed(
    reports: list[ModelReport], expected: dict[str, Any]
) -> None:
    site = Site()
    for report in reports:
        site.node([report])
    assert weights_of(await get(site, "/v1/models/tiny")) == expected
    [row] = (await get(site, "/api/tags")).json["models"]
    assert row["details"]["quantization_level"] == expected.get("quantization", "")
    assert re.fullmatch("[0-9a-f]{64}", row["digest"])
    assert row["digest"] not in (SHA, OTHER)


async def test_a_list_stays_short_whatever_nodes_invent() -> None:
    site = Site()
    for number in range(40):
        site.node([ModelReport("tiny", digest=f"{number:064x}")])
    answer = await get(site, "/v1/models/tiny")
    assert len(answer.json["variants"]) == 16


async def test_one_of_several_weights_can_be_shown() -> None:
    site = Site()
    site.node([Q4]), site.node([Q8])
    user, body = site.user(), {"model": "tiny"}
    for headers, level in (
        ({"x-fabric-quant": "q8_0"}, "Q8_0"),
        ({"x-fabric-digest": SHA[:12]}, "Q4_K_M"),
        ({}, ""),
    ):
        shown = await user.ask("POST", "/api/show", body, **site.key, **headers)
        assert shown.json["details"]["quantization_level"] == level
    answer = await user.ask("POST", "/api/show", body, **site.key, **{"x-fabric-quant": "Q6_K"})
    assert answer.status == 404
    assert "Q8_0 (digest 9f438cb9cd58)" in answer.json["error"]
    answer = await user.ask("POST", "/api/show", body, **site.key, **{"x-fabric-quant": "a b"})
    assert answer.status == 400
