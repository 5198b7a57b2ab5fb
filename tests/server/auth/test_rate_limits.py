"""How much a key may ask in a minute, and what its user is told of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric_server.auth.keys import Key
from fabric_server.auth.rate_limits import RateLimits, duration
from fabric_server.dialects.errors import ApiError
from tests.keys import mint_with
from tests.site import ASK, CHAT, STREAM, Site, chunk, usage_chunk
from tests.users import Answer, request

ANSWER = b'{"usage":{"prompt_tokens":50,"completion_tokens":70}}'


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def key(id: str = "key_a", requests: int | None = None, tokens: int | None = None) -> Key:
    return Key(id, "ada", "laptop", "sk-fab-x", False, None, requests, tokens)


def refused(limits: RateLimits, who: Key) -> ApiError:
    with pytest.raises(ApiError) as caught:
        limits.take(who)
    assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
    return caught.value


def test_a_minutes_worth_may_come_at_once_and_then_evenly() -> None:
    clock = Clock()
    limits, who = RateLimits(clock), key(requests=6)
    for _ in range(6):
        limits.take(who)
    for _ in range(3):
        refusal = refused(limits, who)
        assert (refusal.type, refusal.retry_after) == ("requests", pytest.approx(10.0))
        clock.now += refusal.retry_after or 0
        limits.take(who)
    limits.take(key("key_b", requests=1))


def test_tokens_are_paid_for_when_they_are_known() -> None:
    clock = Clock()
    limits, who = RateLimits(clock), key(tokens=60)
    limits.take(who)
    limits.take(who)
    limits.charge(who, 90)
    refusal = refused(limits, who)
    assert (refusal.type, refusal.retry_after) == ("tokens", pytest.approx(31.0))
    clock.now += 31.0
    limits.take(who)


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 5)), max_size=60))
def test_in_no_time_more_than_its_share_is_let_in(steps: list[tuple[float, int]]) -> None:
    clock = Clock()
    limits, who = RateLimits(clock), key(requests=30)
    let_in = 0
    for wait, count in steps:
        clock.now += wait
        for _ in range(count):
            try:
                limits.take(who)
            except ApiError as refusal:
                assert refusal.retry_after is not None
                assert 0 < refusal.retry_after <= 2.0
            else:
                let_in += 1
    assert let_in <= 30 + (clock.now - Clock.now) / 2 + 1e-3


def test_a_changed_limit_holds_at_once_and_keys_without_end_are_forgotten() -> None:
    limits = RateLimits(Clock(), most=10)
    limits.take(key(requests=1))
    refused(limits, key(requests=1))
    limits.take(key(requests=2))
    for number in range(100):
        limits.take(key(f"key_{number}", requests=1))
    limits.take(key(requests=2))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0ms"),
        (0.0123, "12ms"),
        (1.0, "1s"),
        (1.5, "1.5s"),
        (59.999, "59.999s"),
        (59.9999, "1m0s"),
        (360.0, "6m0s"),
        (3600.0, "1h0m0s"),
    ],
)
def test_durations_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("properties", [{"requests_per_minute": 0}, {"tokens_per_minute": -1}])
def test_a_limit_is_a_number_above_nothing(properties: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="limit"):
        mint_with("laptop", now=0.0, **properties)
    with pytest.raises(ValueError, match="management"):
        mint_with("laptop", now=0.0, management=True, requests_per_minute=1)


# ── what users are told ───────────────────────────────────────────────────────────────────────


async def answered(site: Site, node: Any, who: dict[str, str]) -> Answer:
    user = site.user()
    user.send(request("POST", CHAT, ASK, **who))
    (await node.call()).answer(200, ANSWER)
    return await user.answer()


def told(answer: Answer) -> dict[str, str]:
    start = "x-ratelimit-"
    return {
        name.removeprefix(start): value
        for name, value in answer.headers.items()
        if name.startswith(start)
    }


async def test_a_limited_key_is_told_what_is_left_and_then_when_to_come_back() -> None:
    site = Site()
    node = site.node()
    who = site.make_key(requests_per_minute=2, tokens_per_minute=1000)
    first = told(await answered(site, node, who))
    assert list(first) == [
        *("limit-requests", "remaining-requests", "reset-requests"),
        *("limit-tokens", "remaining-tokens", "reset-tokens"),
    ]
    assert (first["limit-requests"], first["remaining-requests"]) == ("2", "1")
    assert (first["limit-tokens"], first["remaining-tokens"]) == ("1000", "1000")
    second = told(await answered(site, node, who))
    assert int(second["remaining-tokens"]) < 900
    assert second["remaining-requests"] == "0"
    answer = await site.user().ask("POST", CHAT, ASK, **who)
    assert (answer.status, answer.code) == (429, "rate_limit_exceeded")
    assert answer.error["type"] == "requests"
    assert 0 < int(answer.headers["retry-after-ms"]) <= 30_000
    assert 0 < int(answer.headers["retry-after"]) <= 30
    assert "x-should-retry" not in answer.headers, "it is worth it, once the time has come"
    assert told(answer)["remaining-requests"] == "0"
    assert node.idle
    assert [entry.outcome for entry in site.ledger] == ["ok", "ok", "refused"]


async def test_streams_are_charged_for_and_other_dialects_refused_in_theirs() -> None:
    site = Site()
    node = site.node()
    who = site.make_key(tokens_per_minute=10)
    user = site.user()
    user.send(request("POST", CHAT, STREAM, **who))
    (await node.call()).stream_all(chunk("a"), chunk(None), usage_chunk(500, 700))
    assert told(await user.answer())["limit-tokens"] == "10"
    answer = await user.ask("POST", "/api/chat", {"model": "tiny"}, **who)
    assert answer.status == 429
    assert list(answer.json) == ["error"]
    answer = await user.ask("POST", "/v1/messages", {"model": "tiny"}, **who)
    assert json.loads(answer.body)["error"]["type"] == "rate_limit_error"


async def test_a_key_without_limits_is_told_of_none() -> None:
    site = Site()
    assert told(await answered(site, site.node(), site.key)) == {}
