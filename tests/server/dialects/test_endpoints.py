"""Every path that is relayed: asked, answered, lost and refused, each in its own dialect."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from fabric_server.dialects.endpoints import ENDPOINTS, EVENTS, LINES, SHOW
from fabric_server.dialects.error_formats import Dialect
from protocol.errors import Code
from protocol.messages import ModelReport
from tests.server.metering.test_meters import LINES as OLLAMA_LINES
from tests.server.metering.test_meters import MESSAGES, RESPONSES, SPOKEN
from tests.site import CHAT, DONE, Site, chunk, usage_chunk
from tests.users import Answer, MemoryUser, request

BOUNDARY = "xxBOUNDARYxx"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


def form(**fields: str) -> bytes:
    parts = [
        f'--{BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    ]
    file = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
    return (
        "".join([*parts, file, "\r\n"]).encode() + b"RIFF\x00\xff\r\n" + f"--{BOUNDARY}--".encode()
    )


def asked(
    path: str, stream: bool | None = None, model: str = "tiny"
) -> tuple[bytes, dict[str, str]]:
    """A body for this path, and its headers."""
    if ENDPOINTS[path].form:
        more = {} if stream is None else {"stream": str(stream).lower()}
        return form(model=model, **more), {"content_type": FORM}
    body: dict[str, Any] = {"model": model, "messages": [], "prompt": "x", "input": "x"}
    return json.dumps(body if stream is None else {**body, "stream": stream}).encode(), {}


WHOLE: dict[str, Any] = {"answer": 1, "usage": {"input_tokens": 5, "output_tokens": 7}}
OLLAMA_WHOLE = {"done": True, "prompt_eval_count": 5, "eval_count": 7}
UNCOUNTED = ("/v1/messages/count_tokens", "/tokenize", "/detokenize")
RELAYED = [path for path, endpoint in ENDPOINTS.items() if endpoint is not SHOW]
STREAMS = {
    "/v1/chat/completions": [chunk("a"), chunk(None), usage_chunk(5, 7), DONE],
    "/v1/completions": [chunk("a"), chunk(None), usage_chunk(5, 7), DONE],
    "/v1/responses": RESPONSES,
    "/v1/messages": MESSAGES,
    "/v1/audio/transcriptions": SPOKEN,
    "/v1/audio/translations": SPOKEN,
    "/api/chat": OLLAMA_LINES,
    "/api/generate": OLLAMA_LINES,
}
STREAMED = [path for path in RELAYED if ENDPOINTS[path].streams]


def parts_of(path: str) -> list[bytes]:
    return STREAMS[ENDPOINTS[path].path]


def site_with(path: str, **more: Any) -> tuple[Site, Any]:
    site = Site(**more)
    return site, site.node(["tiny"], paths=[ENDPOINTS[path].path])


def ask(site: Site, path: str, stream: bool | None = None, **headers: str) -> MemoryUser:
    body, more = asked(path, stream)
    user = site.user()
    user.send(request("POST", path, body, **{**site.key, **more, **headers}))
    return user


def assert_error(path: str, answer: Answer, status: int, code: str, type: str) -> str:
    """The error in the shape of its dialect, field by field; returns its words."""
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    return assert_shape(ENDPOINTS[path].dialect, answer.json, answer.headers, code, type)


def assert_shape(dialect: Dialect, said: Any, headers: Any, code: str, type: str) -> str:
    if dialect is Dialect.OLLAMA:
        told = {"error": said["error"]}
        # Ollama's program shows nothing else of a 401.
        assert said == (
            told | {"status": said["error"]} if type == "authentication_error" else told
        )
        assert "request-id" not in headers
        words = said["error"]
    elif dialect is Dialect.ANTHROPIC:
        assert list(said) == ["type", "error", "request_id"]
        assert said["type"] == "error"
        assert list(said["error"]) == ["type", "message"]
        assert said["error"]["type"] == type
        assert said["request_id"] == headers["request-id"] == headers["x-request-id"]
        words = said["error"]["message"]
    else:
        assert list(said) == ["error"]
        assert list(said["error"]) == ["message", "type", "param", "code"]
        assert said["error"]["code"] == code
        words = said["error"]["message"]
    assert isinstance(words, str)
    assert words
    return words


# ── asked and answered ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", RELAYED)
async def test_an_answer_in_one_piece_comes_back_with_its_length_and_is_counted(path: str) -> None:
    site, node = site_with(path)
    user = ask(site, path, False)
    call = await node.call()
    assert call.request.path == ENDPOINTS[path].path, "nodes know it without /ollama"
    assert await call.whole_body() == asked(path, False)[0]
    ollama = ENDPOINTS[path].dialect is Dialect.OLLAMA
    body = json.dumps(OLLAMA_WHOLE if ollama else WHOLE).encode()
    call.head(200, ("content-type", "application/json"))  # translated: of no length
    call.data(body[:9])
    call.data(body[9:])
    call.end()
    answer = await user.answer()
    assert (answer.status, answer.body) == (200, body)
    assert answer.headers["content-length"] == str(len(body))
    entry = await site.entry()
    assert (entry.outcome, entry.model, entry.stream, entry.path) == ("ok", "tiny", False, path)
    counted = (None, None) if path in UNCOUNTED else (5, 7)
    assert (entry.prompt_tokens, entry.completion_tokens) == counted


@pytest.mark.parametrize("path", STREAMED)
async def test_a_stream_comes_as_it_is_and_is_counted(path: str) -> None:
    site, node = site_with(path)
    endpoint = ENDPOINTS[path]
    assert endpoint.streams is not None
    user = ask(site, path, None if endpoint.streams_by_default else True)
    call = await node.call()
    call.head(200, ("content-type", endpoint.streams))
    parts = parts_of(path)
    call.data(parts[0])
    await user.until(parts[0][:20])
    call.data(b"".join(parts[1:]))
    call.end()
    answer = await user.answer()
    kept = [part for part in parts if part != usage_chunk(5, 7)]
    assert answer.body == b"".join(kept)
    assert answer.headers["content-type"] == endpoint.streams
    assert answer.headers["x-accel-buffering"] == "no"
    entry = await site.entry()
    assert (entry.outcome, entry.prompt_tokens, entry.completion_tokens) == ("ok", 5, 7)
    assert entry.stream


@pytest.mark.parametrize("path", [path for path in RELAYED if not ENDPOINTS[path].form])
async def test_only_openais_chat_is_asked_for_its_usage(path: str) -> None:
    site, node = site_with(path)
    ask(site, path, True)
    sent = json.loads(await (await node.call()).whole_body())
    assert ("stream_options" in sent) == (path in ("/v1/chat/completions", "/v1/completions"))


@pytest.mark.parametrize("path", RELAYED)
async def test_an_engines_own_error_passes_untouched(path: str) -> None:
    site, node = site_with(path)
    user = ask(site, path)
    (await node.call()).answer(400, b'{"its":"own"}')
    answer = await user.answer()
    assert (answer.status, answer.body) == (400, b'{"its":"own"}')
    assert (await site.entry()).outcome == "engine_error"


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
    assert answer.body == parts_of(path)[0] + said, "it is told once"
    assert (await site.entry()).outcome == "failed"


@pytest.mark.parametrize("path", STREAMED)
async def test_a_stream_that_waits_is_kept_alive_where_its_dialect_has_comments(path: str) -> None:
    site, node = site_with(path, queue_timeout=600.0)
    site.registry.report(node.node, [node.report(["tiny"], slots=1)])
    ask(site, path, True)
    first = await node.call()
    user = ask(site, path, True)
    while not site.admission.waiting:
        await user_turn()
    site.wait(3.0)
    site.wait(30.0)
    await user_turn()
    endpoint = ENDPOINTS[path]
    if endpoint.streams != EVENTS:
        assert not user.received
        return
    assert b": queued, position 1\n\n" in user.received
    first.fail(Code.ENGINE_FAILED)
    second = await node.call()
    second.answer(400, b'{"type":"error","error":{"type":"t","message":"bad"}}')
    body = (await user.answer()).body
    assert body.endswith(b"\n\n")
    assert b'"bad"' in body
    assert (b"event: error\ndata: " in body) == (endpoint.dialect is not Dialect.OPENAI)


async def user_turn() -> None:

    for _ in range(5):
        await asyncio.sleep(0)


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
        "/chat/completions",
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
    site, node = site_with("/v1/responses")
    user = site.user()
    answer = await user.ask("POST", "/v1/responses", {"model": "tiny", field: value}, **site.key)
    assert (answer.status, answer.error["param"]) == (400, field)
    assert field in answer.error["message"]
    filler = {"input": "x" * 600_000}  # however far behind
    answer = await user.ask(
        "POST", "/v1/responses", {"model": "tiny", **filler, field: value}, **site.key
    )
    assert (answer.status, answer.error["param"]) == (400, field)
    harmless = {"previous_response_id": None, "conversation": None, "background": False}
    user.send(request("POST", "/v1/responses", {"model": "tiny", **harmless}, **site.key))
    (await node.call()).answer(200, b"{}")
    assert (await user.answer()).status == 200


# ── which engines can be asked ────────────────────────────────────────────────────────────────


async def test_a_request_goes_to_whoever_can_be_asked_on_its_path() -> None:
    site = Site()
    silent, able = site.node(["tiny"]), site.node(["tiny"], paths=["/v1/messages", CHAT])
    for _ in range(5):
        user = ask(site, "/v1/messages")
        (await able.call()).answer(200, b"{}")
        assert (await user.answer()).status == 200
    assert silent.idle
    user = ask(site, "/v1/completions")
    (await silent.call()).answer(200, b"{}")
    assert (await user.answer()).status == 200
    assert able.idle, "who tells its paths has no others"


@pytest.mark.parametrize("path", [path for path in RELAYED if path not in STREAMED[:2]])
async def test_a_path_that_no_engine_of_the_model_has_is_named(path: str) -> None:
    site = Site()
    site.node(["tiny"], paths=[CHAT, "/v1/completions"])
    answer = await ask(site, path).answer()
    words = assert_error(path, answer, 404, "path_not_supported", "not_found_error")
    assert ENDPOINTS[path].path in words
    assert "'tiny'" in words
    assert f"{CHAT}, /v1/completions" in words
    assert (await site.entry()).outcome == "refused"


async def test_who_waits_is_served_by_whoever_can_be_asked() -> None:
    site = Site()
    able = site.node(["tiny"], paths=["/v1/messages"], slots=1)
    ask(site, "/v1/messages")
    first = await able.call()
    user = ask(site, "/v1/messages")
    other = site.node(["tiny"])
    while not site.admission.waiting:
        await user_turn()
    assert other.idle
    first.answer(200, b"{}")
    (await able.call()).answer(200, b"{}")
    assert (await user.answer()).status == 200
    assert other.idle


async def test_another_engine_that_can_is_tried() -> None:
    site = Site()
    nodes = [site.node(["tiny"], paths=["/api/chat"]) for _ in range(2)]
    site.node(["tiny"])
    for node in nodes:
        node.refuses = Code.REFUSED
    answer = await ask(site, "/api/chat").answer()
    assert_error("/api/chat", answer, 503, "no_capacity", "")
    assert (await site.entry()).attempts == 2


# ── names, as Ollama's clients have them ──────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("served", "wanted", "kind", "sent"),
    [
        ("tiny:latest", "tiny", "ollama", "tiny"),
        ("tiny", "tiny:latest", "vllm", "tiny"),
        ("tiny:latest", "tiny", "vllm", "tiny:latest"),
        ("tiny:1b", "tiny:1b", "ollama", "tiny:1b"),
    ],
)
async def test_a_name_without_a_tag_is_the_latest(
    served: str, wanted: str, kind: str, sent: str
) -> None:
    site = Site()
    node = site.node([served], kind=kind, paths=["/api/chat"])
    user = site.user()
    user.send(request("POST", "/api/chat", {"model": wanted}, **site.key))
    call = await node.call()
    assert json.loads(await call.whole_body()) == {"model": sent}
    call.answer(200, b'{"done":true}')
    assert (await user.answer()).status == 200
    assert (await site.entry()).model == wanted


async def test_an_alias_works_in_every_dialect_and_in_forms() -> None:
    site = Site(aliases={"fast": ("none", "tiny")})
    node = site.node(["tiny"], paths=["/v1/audio/transcriptions", "/v1/messages"])
    user = site.user()
    body, more = asked("/v1/audio/transcriptions", model="fast")
    user.send(request("POST", "/v1/audio/transcriptions", body, **site.key, **more))
    call = await node.call()
    sent = await call.whole_body()
    assert sent == asked("/v1/audio/transcriptions")[0]
    assert call.request.body_size == len(sent)
    call.answer(200, b"{}")
    assert (await user.answer()).status == 200
    user.send(request("POST", "/v1/messages", asked("/v1/messages", model="fast")[0], **site.key))
    assert json.loads(await (await node.call()).whole_body())["model"] == "tiny"


# ── what bodies need ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [{"content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
        ("/v1/responses", {"input": [{"content": [{"type": "input_image", "image_url": "x"}]}]}),
        ("/v1/messages", {"messages": [{"content": [{"type": "image", "source": {}}]}]}),
        ("/api/chat", {"messages": [{"content": "x", "images": ["aGk="]}]}),
        ("/api/generate", {"prompt": "x", "images": ["aGk="]}),
    ],
)
@pytest.mark.parametrize("compact", [True, False])
async def test_pictures_go_to_engines_that_see(path: str, body: Any, compact: bool) -> None:
    site = Site()
    paths = [ENDPOINTS[path].path]
    blind = site.node([ModelReport("tiny", capabilities=["completion"])], paths=paths)
    sees = site.node([ModelReport("tiny", capabilities=["completion", "vision"])], paths=paths)
    separators = (",", ":") if compact else (", ", ": ")
    text = json.dumps({"model": "tiny", **body}, separators=separators).encode()
    for _ in range(4):
        user = site.user()
        user.send(request("POST", path, text, **site.key))
        (await sees.call()).answer(200, b'{"done":true}')
        await user.answer()
    assert blind.idle


@pytest.mark.parametrize("ids", [[1, 2], [[1, 2], [3]], [[5]]])
async def test_numbers_of_tokens_are_embedded_by_engines_that_take_them(ids: Any) -> None:
    site = Site()
    ollama = site.node(["tiny"], kind="ollama")
    body = {"model": "tiny", "input": ids}
    user = site.user()
    answer = await user.ask("POST", "/v1/embeddings", body, **site.key)
    assert (answer.status, answer.error["param"]) == (400, "input")
    assert "check_embedding_ctx_length=False" in answer.error["message"]
    vllm = site.node(["tiny"], kind="vllm")
    for _ in range(4):
        user.send(request("POST", "/v1/embeddings", body, **site.key))
        (await vllm.call()).answer(200, b"{}")
        assert (await user.answer()).status == 200
    assert ollama.idle
    user.send(request("POST", "/v1/embeddings", {**body, "input": ["1", "[2]"]}, **site.key))
    (await ollama.call()).answer(200, b"{}")
    assert (await user.answer()).status == 200


async def test_conversations_return_to_their_cache_in_every_dialect() -> None:
    for path, body in (
        ("/v1/messages", {"system": "s" * 3000, "messages": []}),
        ("/v1/responses", {"instructions": "s" * 3000, "input": []}),
        ("/api/chat", {"messages": [{"content": "s" * 3000}]}),
        ("/api/generate", {"prompt": "s" * 3000}),
    ):
        site = Site()
        nodes = [site.node(["tiny"], paths=[ENDPOINTS[path].path]) for _ in range(3)]
        asked_nodes = set()
        for turn in range(4):
            user = site.user()
            text = json.dumps({"model": "tiny", **body, "options": {"seed": turn}}).encode()
            user.send(request("POST", path, text, **site.key))
            while all(node.idle for node in nodes):
                await user_turn()
            [node] = [node for node in nodes if not node.idle]
            asked_nodes.add(node.node.id)
            (await node.call()).answer(200, b'{"done":true}')
            await user.answer()
        assert len(asked_nodes) == 1, path


async def test_the_node_is_given_back_its_slot_after_a_stream_of_lines_was_hung_up_on() -> None:
    site, node = site_with("/api/chat")
    user = ask(site, "/api/chat")
    call = await node.call()
    call.head(200, ("content-type", LINES))
    call.data(OLLAMA_LINES[0])
    await user.until(b"Hel")
    user.hang_up()
    assert await call.stopped() == Code.CANCELLED
    call.confirm()
    await site.free()
    assert (await site.entry()).outcome == "cancelled"


# ── the table and what is written of it ───────────────────────────────────────────────────────


def test_every_row_of_the_table_is_in_the_documentation() -> None:
    text = (Path(__file__).parents[3] / "docs" / "endpoints.md").read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `POST")]
    told = {path for line in rows for path in re.findall(r"`(?:POST )?(/\S+)`", line.split("|")[1])}
    assert told == {endpoint.path for endpoint in ENDPOINTS.values()}
