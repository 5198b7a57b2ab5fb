"""Every endpoint: requested, answered, routed and counted, each in its own dialect."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from fabric_server.dialects.endpoints import ENDPOINTS, LINES
from fabric_server.dialects.error_formats import Dialect
from protocol.errors import Code
from protocol.messages import ModelReport
from tests.server.dialects.paths import (
    OLLAMA_WHOLE,
    RELAYED,
    STREAMED,
    UNCOUNTED,
    WHOLE,
    ask,
    asked,
    assert_error,
    parts_of,
    site_with,
    user_turn,
)
from tests.site import CHAT, Site, usage_chunk
from tests.streams import LINES as OLLAMA_LINES
from tests.users import request

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
    generated = 7 if ENDPOINTS[path].generates else 0  # such as embeddings: whatever is reported
    counted = (None, None) if path in UNCOUNTED else (5, generated)
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
    await site.queued(1)
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
        (
            CHAT,
            {"messages": [{"content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
        ),
        (
            "/v1/responses",
            {"input": [{"content": [{"type": "input_image", "image_url": "data:,"}]}]},
        ),
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
    told = {path for path in told if "{" not in path}  # those of what is stored, in other tables
    assert told == {endpoint.path for endpoint in ENDPOINTS.values()}
