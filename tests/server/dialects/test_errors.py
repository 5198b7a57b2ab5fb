"""Errors in each dialect: in the middle of an answer, and by the fabric itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fabric_server.dialects.endpoints import ENDPOINTS, LINES
from fabric_server.dialects.error_formats import Dialect
from protocol.errors import Code
from tests.server.dialects.paths import (
    RELAYED,
    STREAMED,
    ask,
    asked,
    assert_error,
    assert_shape,
    form,
    parts_of,
    site_with,
    user_turn,
)
from tests.site import CHAT, Site
from tests.users import request

# ── what goes wrong in the middle ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", STREAMED)
@pytest.mark.parametrize("how", ["lost", "ended"])
async def test_a_stream_that_breaks_ends_with_an_error_of_its_dialect(path: str, how: str) -> None:
    site, node = site_with(path)
    endpoint = ENDPOINTS[path]
    user = ask(site, path, True)
    call = await node.call()
    assert endpoint.streams is not None
    call.head(200, ("content-type", endpoint.streams))
    first, second = parts_of(path)[:2]
    call.data(first + second[:7])
    await user.until(first[:20])
    if how == "lost":
        call.fail(Code.ENGINE_FAILED)
    else:
        call.end()
    answer = await user.answer()
    gap = b"" if how == "lost" else second[:7] + endpoint.dialect.separator
    assert answer.body.startswith(first + gap), "what was held back of a lost one is of no use"
    last = answer.body.removeprefix(first + gap)
    code = "upstream_lost" if how == "lost" else "incomplete"
    if endpoint.dialect is Dialect.OLLAMA:
        assert last.endswith(b"\n")
        assert last.count(b"\n") == 1
        said = json.loads(last)
    else:
        assert last.endswith(b"\n\n")
        name, _, data = last[:-2].rpartition(b"data: ")
        assert name == (b"" if endpoint.dialect is Dialect.OPENAI else b"event: error\n")
        said = json.loads(data)
    if endpoint.dialect is Dialect.RESPONSES:
        assert list(said) == ["type", "code", "message", "param", "sequence_number", "error"]
        assert (said["type"], said["code"]) == ("error", code)
        assert said["sequence_number"] == 1, "the one that it comes after has 0"
        assert said["error"]["message"] == said["message"]
    else:
        assert_shape(endpoint.dialect, said, answer.headers, code, "api_error")
    entry = await site.entry()
    assert entry.outcome == ("failed" if how == "lost" else "incomplete")


@pytest.mark.parametrize("path", RELAYED)
async def test_an_answer_in_one_piece_that_is_lost_is_an_error_of_its_dialect(path: str) -> None:
    site, node = site_with(path)
    user = ask(site, path, False)
    call = await node.call()
    call.head(200, ("content-type", "application/json"))
    call.data(b'{"half')
    call.fail(Code.ENGINE_FAILED)
    assert_error(path, await user.answer(), 502, "upstream_error", "api_error")
    assert (await site.entry()).outcome == "failed"


@pytest.mark.parametrize("path", STREAMED)
async def test_an_error_that_an_engine_tells_within_its_stream_is_no_success(path: str) -> None:
    site, node = site_with(path)
    endpoint = ENDPOINTS[path]
    assert endpoint.streams is not None
    user = ask(site, path, True)
    call = await node.call()
    call.head(200, ("content-type", endpoint.streams))
    lines = endpoint.streams == LINES
    said = b'{"error":"x"}\n' if lines else b'event: error\ndata: {"type":"error","error":{}}\n\n'
    call.data(parts_of(path)[0] + said)
    call.end()
    answer = await user.answer()
    told = answer.body.removeprefix(parts_of(path)[0])
    if lines:
        assert told == said, "it is told once"
    else:  # an engine's own form becomes the dialect's
        assert answer.body.count(b"event: error") == 1
        name, _, data = told.partition(b"\ndata: ")
        assert name == b"event: error"
        error = json.loads(data)
        assert "The engine reported an error." in (error.get("message"), error["error"]["message"])
        if endpoint.dialect is Dialect.OPENAI:
            assert error["error"]["code"] == "engine_error"
    assert (await site.entry()).outcome == "failed"


@pytest.mark.parametrize("path", STREAMED)
async def test_a_stream_that_waits_is_kept_alive_in_every_dialect(path: str) -> None:
    site, node = site_with(path, queue_timeout=600.0)
    site.registry.report(node.node, [node.report(["tiny"], slots=1)])
    ask(site, path, True)
    first = await node.call()
    user = ask(site, path, True)
    await site.queued(1)
    site.wait(3.0)
    site.wait(30.0)
    await user_turn()
    endpoint = ENDPOINTS[path]
    lines = endpoint.streams == LINES
    if lines:
        assert b'"done":false}\n' in user.received
        assert b"content-type: application/x-ndjson\r\n" in user.received
    else:
        assert b": queued, position 1\n\n" in user.received
    first.fail(Code.ENGINE_FAILED)
    second = await node.call()
    bad = b'{"error":"bad"}' if lines else b'{"type":"error","error":{"type":"t","message":"bad"}}'
    second.answer(400, bad)
    body = (await user.answer()).body
    assert body.endswith(b"\n" if lines else b"\n\n")
    assert b'"bad"' in body
    if lines:
        assert json.loads(body.splitlines()[-1]) == {"error": "bad"}
    else:
        assert (b"event: error\ndata: " in body) == (endpoint.dialect is not Dialect.OPENAI)


# ── what the fabric refuses ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", [*RELAYED, "/api/show"])
async def test_refusals_are_told_in_the_dialect_of_the_path(path: str) -> None:
    site, _ = site_with(path)
    body, more = asked(path)
    wrong = {"authorization": "Bearer nonsense"}
    user = site.user()
    answer = await user.ask("POST", path, body, **{**more, **wrong})
    assert_error(path, answer, 401, "invalid_api_key", "authentication_error")
    assert answer.headers["x-should-retry"] == "false"
    answer = await user.ask("GET", path, **site.key)
    assert_error(path, answer, 405, "method_not_allowed", "invalid_request_error")
    body, more = asked(path, model="none")
    answer = await user.ask("POST", path, body, **site.key, **more)
    words = assert_error(path, answer, 404, "model_not_found", "not_found_error")
    if ENDPOINTS[path].dialect is Dialect.OLLAMA:
        assert words == "model 'none' not found", "as Ollama says it: its clients read it"
    length = {"content-length": "99999999999", "expect": "100-continue"}
    user.send(request("POST", path, None, **site.key, **more, **length))
    answer = await user.answer()
    assert_error(path, answer, 413, "body_too_large", "request_too_large")


@pytest.mark.parametrize("path", RELAYED)
async def test_a_compressed_body_is_refused_by_the_name_of_its_encoding(path: str) -> None:
    site, node = site_with(path)
    body, more = asked(path)
    user = site.user()
    answer = await user.ask("POST", path, body, **site.key, **more, content_encoding="gzip")
    words = assert_error(path, answer, 415, "unsupported_encoding", "invalid_request_error")
    assert "'gzip'" in words
    user.send(request("POST", path, body, **site.key, **more, content_encoding="identity"))
    (await node.call()).answer(200, b"{}")
    assert (await user.answer()).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/v1/v1/chat/completions",
        "/v1//chat/completions",
        "//v1/chat/completions",
    ],
)
async def test_a_wrong_base_url_is_told_where_it_should_have_led(path: str) -> None:
    answer = await Site().user().ask("POST", path, b"{}")
    assert (answer.status, answer.code) == (404, "unknown_path")
    assert f"Did you mean {CHAT}?" in answer.error["message"]


@pytest.mark.parametrize("path", RELAYED)
async def test_a_model_that_a_key_may_not_use_is_refused_in_whatever_spelling(path: str) -> None:
    site, _ = site_with(path)
    key = site.make_key(models=["other"])
    body, more = asked(path)
    user = site.user()
    answer = await user.ask("POST", path, body, **key, **more)
    assert_error(path, answer, 403, "model_not_allowed", "permission_error")
    if ENDPOINTS[path].form:
        body = form(model="other", Model="tiny")
    else:
        body = b'{"model":"other","Model":"tiny","input":"x"}'
    answer = await user.ask("POST", path, body, **key, **more)
    assert_error(path, answer, 400, "invalid_value", "invalid_request_error")


@pytest.mark.parametrize("path", RELAYED)
async def test_no_capacity_may_be_tried_again(path: str) -> None:
    site, node = site_with(path)
    node.vanish()
    node.leave()
    answer = await ask(site, path).answer()
    assert_error(path, answer, 503, "no_capacity", "overloaded_error")
    assert answer.headers["x-should-retry"] == "true"
    assert int(answer.headers["retry-after-ms"]) <= 1000 * int(answer.headers["retry-after"])


async def test_paths_that_are_not_there_answer_in_the_dialect_of_their_neighbours() -> None:
    user = Site().user()
    for path, dialect in (
        ("/v2/nothing", Dialect.OPENAI),
        ("/_stainless_unknown_path", Dialect.OPENAI),
        ("/v1/messages/batches", Dialect.ANTHROPIC),
        ("/api/nothing", Dialect.OLLAMA),
        ("/ollama/v1/nothing", Dialect.OLLAMA),
    ):
        answer = await user.ask("POST", path)
        assert answer.status == 404
        assert_shape(dialect, answer.json, answer.headers, "unknown_path", "not_found_error")


async def test_an_anthropic_key_comes_in_a_header_of_its_own() -> None:
    site, node = site_with("/v1/messages")
    key = site.key["authorization"].removeprefix("Bearer ")
    body, _ = asked("/v1/messages")
    user = site.user()
    versions = {"anthropic-version": "2023-06-01", "anthropic-beta": "tools-2024"}
    user.send(request("POST", "/v1/messages", body, **{"x-api-key": key}, **versions))
    call = await node.call()
    assert dict(call.request.headers) == versions, "and the node is told no key"
    call.answer(200, b"{}")
    answer = await user.answer()
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
    assert "openai-version" not in answer.headers


# ── /v1/responses ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("field", "value"),
    [("previous_response_id", "resp_1"), ("conversation", {"id": "c"}), ("background", True)],
)
async def test_what_needs_an_earlier_answer_is_refused_by_name(field: str, value: Any) -> None:
    instead = "/inference" if field == "background" else "Send the whole input."
    site, node = site_with("/v1/responses")
    user = site.user()
    answer = await user.ask("POST", "/v1/responses", {"model": "tiny", field: value}, **site.key)
    assert (answer.status, answer.error["param"]) == (400, field)
    assert field in answer.error["message"] and instead in answer.error["message"]
    filler = {"input": "x" * 600_000}  # however far behind
    answer = await user.ask(
        "POST", "/v1/responses", {"model": "tiny", **filler, field: value}, **site.key
    )
    assert (answer.status, answer.error["param"]) == (400, field)
    harmless = {"previous_response_id": None, "conversation": None, "background": False}
    user.send(request("POST", "/v1/responses", {"model": "tiny", **harmless}, **site.key))
    (await node.call()).answer(200, b"{}")
    assert (await user.answer()).status == 200
