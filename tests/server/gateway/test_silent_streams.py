"""What a client gets while nothing comes of an answer that has begun, in every dialect."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import httpx
import httpx2
import ollama
import openai
import pytest

from fabric_server.dialects.endpoints import ENDPOINTS, EVENTS, LINES
from fabric_server.dialects.keepalives import keepalive
from fabric_server.gateway.stream_keepalive import AGAIN_SECONDS, CHECK_SECONDS, LOADING_SECONDS
from tests.server.dialects.paths import STREAMED, ask, parts_of, site_with
from tests.site import DONE, Call, Site, chunk, turns
from tests.streams import MESSAGES, named
from tests.users import MemoryUser

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
COMMENT = b": waiting for the model\n\n"


async def silent(path: str, first: bytes, **more: Any) -> tuple[Site, MemoryUser, Call]:
    """A stream of which the client has ``first``, before that is noticed."""
    site, node = site_with(path, **more)
    endpoint = ENDPOINTS[path]
    user = ask(site, path, True)
    call = await node.call()
    assert endpoint.streams is not None
    call.head(200, ("content-type", endpoint.streams))
    call.data(first)
    await user.until(first[:20])
    site.wait(3)
    return site, user, call


def meant_nothing(path: str, data: bytes) -> bool:
    """Whether this is what keeps a stream of this path alive, and nothing else."""
    if path.endswith("/v1/messages"):
        return data == PING
    if ENDPOINTS[path].streams == EVENTS:
        return data == COMMENT
    line = json.loads(data)
    created_at = line.pop("created_at")
    assert created_at.endswith("Z")
    said = (
        {"message": {"role": "assistant", "content": ""}}
        if path.endswith("chat")
        else {"response": ""}
    )
    return bool(line == {"model": "tiny", "done": False, **said} and data.endswith(b"}\n"))


@pytest.mark.parametrize("path", STREAMED)
async def test_a_client_is_kept_while_its_engine_is_silent_in_the_middle(path: str) -> None:
    first, *rest = parts_of(path)
    site, user, call = await silent(path, first)
    site.wait(3 + AGAIN_SECONDS - 0.5)
    await turns()
    assert b"ping" not in user.received
    before = len(user.received)
    for again in (1, 2):
        site.wait(3 + again * (AGAIN_SECONDS + 0.1))
        await turns()
    assert len(user.received) > before
    call.data(b"".join(rest))
    call.end()
    body = (await user.answer()).body
    assert body.startswith(first)
    last = b"".join(rest)
    if path == "/v1/chat/completions" or path == "/v1/completions":
        last = rest[0] + rest[2]  # the usage chunk was not asked for
    assert body.endswith(last)
    between = body.removeprefix(first).removesuffix(last)
    assert len(between) % 2 == 0
    halves = between[: len(between) // 2], between[len(between) // 2 :]
    assert all(meant_nothing(path, half) for half in halves)
    assert (await site.entry()).outcome == "ok"


async def test_half_an_event_is_never_interrupted() -> None:
    huge = b'data: {"choices":[{"delta":{"content":"' + b"x" * (5 * 2**20)
    site, node = site_with("/v1/chat/completions")
    user = ask(site, "/v1/chat/completions", True)
    call = await node.call()
    call.begin_stream()
    await call.all_data(huge)
    await user.until(b"xxx")
    await turns(50)
    for seconds in range(3, 60, 11):
        site.wait(seconds)
        await turns()
    assert COMMENT not in user.received
    await call.all_data(
        b'"}}]}\n\ndata: {"choices":[{"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    )
    call.end()
    await user.answer()
    user.hang_up()


async def test_nothing_is_sent_while_chunks_come_nor_after_the_last() -> None:
    path = "/v1/messages"
    first, *rest = parts_of(path)
    site, user, call = await silent(path, first)
    for number, part in enumerate(rest):
        site.wait(3 + (number + 1) * (AGAIN_SECONDS - CHECK_SECONDS))
        call.data(part)
        await turns()
    for more in range(3):
        site.wait(200 + more * (AGAIN_SECONDS + 1))
        await turns()
    call.end()
    assert (await user.answer()).body == first + b"".join(rest)


async def test_who_does_not_read_is_sent_nothing_more() -> None:
    site, user, _ = await silent("/v1/chat/completions", parts_of("/v1/chat/completions")[0])
    user.stop_reading()
    for seconds in range(20, 30, 3):
        site.wait(seconds)
        await turns()
    assert COMMENT not in user.received
    user.hang_up()


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
async def test_a_loaded_model_is_told_of_in_one_piece_after_empty_lines(path: str) -> None:
    """Ollama answers who sends no prompt, to load a model, with one object that is no stream."""
    site, node = site_with(path)
    user = ask(site, path, True)
    call = await node.call()
    site.wait(LOADING_SECONDS + 0.1)
    await user.until(b'"done":false}\n')
    told = b'{"model":"tiny","done":true,"done_reason":"load"}'
    call.answer(200, told, "application/json; charset=utf-8")
    answer = await user.answer()
    assert answer.headers["content-type"] == "application/x-ndjson"
    first, last = answer.body.splitlines()
    assert meant_nothing(path, first + b"\n")
    assert last == told
    assert (await site.entry()).outcome == "ok"


# ── what clients make of it ───────────────────────────────────────────────────────────────────

LINES_OF_TEXT = [
    b'{"model":"tiny","message":{"role":"assistant","content":"a"},"response":"a","done":false}\n',
    b'{"model":"tiny","message":{"role":"assistant","content":"b"},"response":"b","done":false}\n',
    b'{"model":"tiny","message":{"role":"assistant","content":""},"response":"","done":true}\n',
]


def filled(path: str, parts: list[bytes]) -> tuple[bytes, dict[str, str]]:
    """A stream with what keeps it alive wherever that may be, and its headers."""
    endpoint = ENDPOINTS[path]
    alone = keepalive(endpoint, "tiny", "waiting")
    begun = keepalive(endpoint, "tiny", "waiting", begun=True)
    return alone * 2 + begun.join(parts), {"content-type": endpoint.streams or ""}


async def test_ollama_s_client_gets_the_text_and_nothing_else() -> None:
    for path in ("/api/chat", "/api/generate"):
        body, headers = filled(path, LINES_OF_TEXT)
        answer = httpx.Response(200, headers=headers, content=body)
        client = ollama.Client(transport=httpx.MockTransport(lambda _, answer=answer: answer))
        if path == "/api/chat":
            texts = [part.message.content for part in client.chat("tiny", [], stream=True)]
        else:
            texts = [part.response for part in client.generate("tiny", "x", stream=True)]
        assert texts == ["", "", "a", "", "b", "", ""]


def test_an_empty_line_would_break_ollama_s_client() -> None:
    """Why a whole line is sent."""
    answer = httpx.Response(200, headers={"content-type": LINES}, content=b"\n{}\n")
    client = ollama.Client(transport=httpx.MockTransport(lambda _: answer))
    with pytest.raises(json.JSONDecodeError):
        list(client.chat("tiny", [], stream=True))


def test_openai_s_and_anthropic_s_clients_skip_comments_and_pings() -> None:
    body, headers = filled("/v1/chat/completions", [chunk("a"), chunk("b"), chunk(None), DONE])
    with httpx2.Client(transport=answering(body, headers)) as http:
        chat = openai.OpenAI(api_key="k", base_url="http://f/v1", http_client=http)
        stream = chat.chat.completions.create(model="tiny", messages=[], stream=True)
        assert "".join(part.choices[0].delta.content or "" for part in stream) == "ab"
    start = {"id": "m", "type": "message", "role": "assistant", "content": [], "model": "tiny"}
    usage = {"input_tokens": 5, "output_tokens": 1}
    parts = [named("message_start", message={**start, "usage": usage}), *MESSAGES[1:]]
    body, headers = filled("/v1/messages", parts)
    with httpx2.Client(transport=answering(body, headers)) as http:
        client = anthropic.Anthropic(api_key="k", base_url="http://f", http_client=http)
        asked: Any = {"model": "tiny", "max_tokens": 9, "messages": []}
        with client.messages.stream(**asked) as events:
            assert events.get_final_text().startswith("message_stop")


def answering(body: bytes, headers: dict[str, str]) -> httpx2.MockTransport:
    return httpx2.MockTransport(lambda _: httpx2.Response(200, headers=headers, content=body))
