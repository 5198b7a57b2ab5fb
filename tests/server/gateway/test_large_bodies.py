"""Bodies over 256 KiB flow: what the engine is asked is what is allowed and billed, to the end."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from protocol.errors import Code
from tests.site import CHAT, DONE, Site, chunk, turns, usage_chunk
from tests.users import PATIENCE, request

BIG = "x" * 300_000
SECOND = ['"model":"dear"', '"Model":"dear"', '"mod\\u0065l":"tiny"', '"stream":true', '"Stream":1']
PATHS = {"openai": CHAT, "anthropic": "/v1/messages", "ollama": "/api/chat"}
SHAPES: dict[str, Any] = {
    "openai": lambda body: (body["error"]["message"], body["error"]["type"]),
    "anthropic": lambda body: (body["error"]["message"], body["error"]["type"]),
    "ollama": lambda body: (body["error"], "invalid_request_error"),
}


def chunked(path: str, *pieces: bytes, **headers: str) -> bytes:
    """A request whose body comes in chunks; the last piece may be empty, which ends it."""
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return request("POST", path, **headers, transfer_encoding="chunked") + body


def announced(path: str, body: bytes, **headers: str) -> bytes:
    return request("POST", path, body, **headers)


@pytest.mark.parametrize("dialect", PATHS)
@pytest.mark.parametrize("second", SECOND)
@pytest.mark.parametrize("in_chunks", [False, True])
async def test_a_second_field_behind_the_beginning_is_refused_before_an_engine_begins(
    dialect: str, second: str, in_chunks: bool
) -> None:
    site = Site()
    node, user = site.node(["tiny", "dear"], paths=[*PATHS.values()]), site.user()
    begin = f'{{"model":"tiny","stream":false,"messages":"{BIG}'.encode()
    rest = f'{BIG}",{second},"y":1}}\n '.encode()
    path = PATHS[dialect]
    if in_chunks:
        user.send(chunked(path, begin, **site.key))
        call = await node.call()
        user.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(rest), rest))
    else:
        whole = announced(path, begin + rest, **site.key)
        user.send(whole[: -len(rest)])
        call = await node.call()
        user.send(whole[-len(rest) :])
    assert await call.stopped() is Code.CANCELLED
    with pytest.raises(ValueError, match=r".*"):
        json.loads(call.body)
    call.confirm()
    answer = await user.answer()
    words, kind = SHAPES[dialect](json.loads(answer.body))
    assert (answer.status, kind) == (400, "invalid_request_error")
    assert "must be given once, in lower case" in words
    entry = await site.entry()
    assert (entry.outcome, entry.status, entry.error) == ("refused", 400, "invalid_value")
    assert (entry.model, entry.completion_tokens, entry.attempts) == ("tiny", None, 1)
    await site.free()


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ('x","y":01}', "not valid JSON"),
        ('x"', "ends too early"),
        ('x"}}', "trailing characters"),
        ('x","y":[}', "not valid JSON"),
    ],
)
async def test_a_mistake_behind_the_beginning_is_the_user_s_and_no_engine_s(
    rest: str, words: str
) -> None:
    site = Site()
    node, user = site.node(), site.user()
    begin = f'{{"model":"tiny","stream":false,"messages":"{BIG}'.encode()
    user.send(chunked(CHAT, begin, **site.key))
    call = await node.call()
    user.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(rest), rest.encode()))
    assert await call.stopped() is Code.CANCELLED
    call.confirm()
    answer = await user.answer()
    assert (answer.status, answer.code) == (400, "invalid_json")
    assert words in json.loads(answer.body)["error"]["message"]
    assert node.engine.breakers == {}
    await site.free()


async def test_the_last_bracket_waits_for_the_end_of_the_body() -> None:
    """Go's decoder begins with it, whatever is announced besides."""
    site = Site()
    node, user = site.node(), site.user()
    begin = f'{{"model":"tiny","stream":false,"messages":"{BIG}'.encode()
    user.send(chunked(CHAT, begin, **site.key))
    call = await node.call()
    user.send(chunked(CHAT, b'"}  ')[-9:])
    await turns()
    assert call.body == begin + b'"  '
    user.send(b"0\r\n\r\n")
    assert await call.whole_body() == begin + b'"  }'
    call.answer(200, b"{}")
    assert (await user.answer()).status == 200


@pytest.mark.parametrize("given", ["", "{}", "null", '{"include_usage":false}', '{"a":[1]}'])
@pytest.mark.parametrize("in_chunks", [False, True])
async def test_usage_is_asked_for_wherever_the_options_stand(given: str, in_chunks: bool) -> None:
    site = Site()
    node, user = site.node(), site.user()
    begin = f'{{"model":"tiny","stream":true,"messages":"{BIG}'.encode()
    options = f',"stream_options": {given} ' if given else ""
    rest = f'{BIG}"{options},"y":1}}\n'.encode()
    if in_chunks:
        user.send(chunked(CHAT, begin, **site.key))
        call = await node.call()
        user.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(rest), rest))
    else:
        whole = announced(CHAT, begin + rest, **site.key)
        user.send(whole[: -len(rest)])
        call = await node.call()
        for piece in (whole[-len(rest) : -20], whole[-20:-10], whole[-10:]):
            user.send(piece)
            await turns(2)
    sent = await call.whole_body()
    assert call.request.body_size == (None if in_chunks else len(sent))
    fields = {**json.loads(begin + rest)}
    options_sent = {**(fields.pop("stream_options", None) or {}), "include_usage": True}
    assert json.loads(sent) == {**fields, "stream_options": options_sent}
    call.stream_all(chunk("hi"), usage_chunk(5, 7), DONE)
    answer = await user.answer()
    assert b'"usage"' not in answer.body, "the user has not asked for it"
    entry = await site.entry()
    assert (entry.prompt_tokens, entry.completion_tokens) == (5, 7)


async def test_who_asks_for_usage_at_the_end_gets_it() -> None:
    site = Site()
    node, user = site.node(), site.user()
    begin = f'{{"model":"tiny","stream":true,"messages":"{BIG}'.encode()
    user.send(chunked(CHAT, begin, **site.key))
    call = await node.call()
    rest = b'","stream_options":{"include_usage":true}}'
    user.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(rest), rest))
    assert await call.whole_body() == begin + rest
    call.stream_all(chunk("hi"), usage_chunk(5, 7), DONE)
    assert b'"usage"' in (await user.answer()).body


async def test_memory_does_not_grow_with_a_body_that_flows() -> None:
    site = Site()
    node, user = site.node(), site.user()
    begin = f'{{"model":"tiny","stream":true,"messages":"{BIG}'.encode()
    user.send(chunked(CHAT, begin, **site.key))
    call = await node.call()
    flowing = site.gateway.active.list()[0].request.body.flowing
    assert flowing is not None
    for _ in range(40):
        user.send(b"%x\r\n%b\r\n" % (len(BIG), BIG.encode()))
        await turns(2)
        async with asyncio.timeout(PATIENCE):
            while flowing.held >= 70_000:  # noqa: ASYNC110 - until its slices had their turns
                await asyncio.sleep(0)
    user.send(b'2\r\n"}\r\n0\r\n\r\n')
    assert len(await call.whole_body()) > 40 * len(BIG)
    call.stream_all(chunk("hi"), DONE)
    assert (await user.answer()).status == 200


async def test_an_alias_is_replaced_in_a_body_that_flows() -> None:
    site = Site(aliases={"fast": ("tiny",)})
    node, user = site.node(), site.user()
    body = f'{{"stream_options":{{}},"model":"fast","stream":true,"m":"{BIG}{BIG}"}}'.encode()
    user.send(announced(CHAT, body, **site.key))
    call = await node.call()
    sent = await call.whole_body()
    assert call.request.body_size == len(sent)
    asked = json.loads(sent)
    assert (asked["model"], asked["stream_options"]) == ("tiny", {"include_usage": True})
    call.stream_all(chunk("hi"), DONE)
    assert (await user.answer()).status == 200
    assert (await site.entry()).model == "fast"


async def test_a_link_far_behind_is_refused_and_one_before_makes_the_body_whole() -> None:
    site = Site()
    node, user = site.node(), site.user()
    link = '{"type":"image_url","image_url":{"url":"https://images.test/a.png"}}'
    begin = f'{{"model":"tiny","stream":true,"messages":[{{"content":["{BIG}"'.encode()
    user.send(chunked(CHAT, begin, **site.key))
    call = await node.call()
    rest = f",{link}]}}]}}".encode()
    user.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(rest), rest))
    assert await call.stopped() is Code.CANCELLED
    call.confirm()
    answer = await user.answer()
    assert (answer.status, answer.code) == (400, "media_refused")
    assert b"https://images.test/a.png" in answer.body
    user = site.user()
    text = f'{{"model":"tiny","stream":true,"messages":[{{"content":[{link},"{BIG}'
    user.send(chunked(CHAT, text.encode(), **site.key))
    await turns(50)
    assert node.idle, "it is read whole, since the URL is to be fetched first"
    await user.end()


async def test_many_large_bodies_leave_the_loop_to_others() -> None:
    """A body of the worst kind is read in slices: others run in between."""
    site = Site()
    node, user = site.node(), site.user()
    hostile = b'{"model":"tiny","messages":[' + b"[[[[]]]]," * 60_000 + b"1]}"
    user.send(announced(CHAT, hostile, **site.key))
    ran = 0
    while node.idle:
        await asyncio.sleep(0)
        ran += 1
    assert ran > 10
    call = await node.call()
    assert await call.whole_body() == hostile
    call.answer(200, b"{}")
    assert (await user.answer()).status == 200
