"""A node's usage is billed and limits keys: within what there can have been."""

from __future__ import annotations

import json
from typing import Any

import pytest

from protocol.messages import ModelReport
from tests.site import ASK, CHAT, DONE, STREAM, Site, ask, chunk, usage_chunk

HUGE = 10**12
BYTES = len(json.dumps(ASK))


def whole(prompt: int, completion: int) -> bytes:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion}
    return json.dumps({"choices": [], "usage": usage}).encode()


@pytest.mark.parametrize("body", [ASK, STREAM])
async def test_a_lie_is_charged_at_the_bound_and_marked(body: dict[str, Any]) -> None:
    site = Site()
    node = site.node()
    body = {**body, "max_tokens": 500}
    user = ask(site, body)
    call = await node.call()
    if "stream" in body:
        call.stream_all(*[chunk("a")] * 20, chunk(None), usage_chunk(HUGE, HUGE), DONE)
    else:
        call.answer(200, whole(HUGE, HUGE))
    assert (await user.answer()).status == 200
    entry = await site.entry()
    assert entry.usage_implausible
    assert entry.prompt_tokens is not None
    assert entry.prompt_tokens <= len(json.dumps(body)) + 100
    assert entry.completion_tokens is not None
    assert 20 < entry.completion_tokens <= 500
    assert node.engine.implausible_usage == site.metrics.implausible == 1


async def test_hidden_reasoning_is_believed_within_max_tokens() -> None:
    site = Site()
    node = site.node()
    user = ask(site, {**STREAM, "max_completion_tokens": 5000})
    text = [chunk("a" * 100)] * 20
    (await node.call()).stream_all(*text, chunk(None), usage_chunk(9, 4000), DONE)
    await user.answer()
    entry = await site.entry()
    assert (entry.prompt_tokens, entry.completion_tokens) == (9, 4000)
    assert not entry.usage_implausible


async def test_the_context_bounds_an_answer_and_embeddings_have_none() -> None:
    site = Site()
    node = site.node([ModelReport("tiny", context_length=64)], paths=[CHAT, "/v1/embeddings"])
    for path, most in ((CHAT, 64), ("/v1/embeddings", 0)):
        user = ask(site, {**ASK, "input": "Hi"}, path)
        (await node.call()).answer(200, whole(1, HUGE))
        await user.answer()
        assert (site.ledger[-1].completion_tokens, site.ledger[-1].usage_implausible) == (
            most,
            True,
        )


async def test_an_image_has_more_tokens_than_bytes() -> None:
    site = Site()
    node = site.node()
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    user = ask(site, {**ASK, "messages": [{"role": "user", "content": [part]}]})
    (await node.call()).answer(200, whole(3000, 5))
    await user.answer()
    entry = await site.entry()
    assert (entry.prompt_tokens, entry.usage_implausible) == (3000, False)


async def test_a_key_s_debt_has_a_cap() -> None:
    site = Site()
    node = site.node()
    key = site.make_key(tokens_per_minute=100)
    user = ask(site, **key)
    (await node.call()).answer(200, b'{"usage":{"prompt_tokens":5,"completion_tokens":%d}}' % HUGE)
    assert (await user.answer()).status == 200
    user = ask(site, {**ASK, "max_tokens": 100}, **key)
    answer = await user.answer()
    assert answer.status == 429
    assert 0 < float(answer.headers["retry-after"]) <= 301


async def test_claims_do_not_make_an_engine_look_quick() -> None:
    site = Site()
    node = site.node()
    user = ask(site, STREAM)
    text = [chunk("a" * 300)] * 3
    (await node.call()).stream_all(*text, chunk(None), usage_chunk(9, 900), DONE)
    await user.answer()
    latency = site.upstream.outcomes.known.latency
    claimed = latency.estimate(node.engine, "tiny", site.loop.time()).rate
    assert claimed <= 10_000.0
