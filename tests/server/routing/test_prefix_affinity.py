"""Beginnings of prompts: which are told apart, and who is remembered for them."""

from __future__ import annotations

import json
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from fabric_server.routing.prefix_affinity import BOUNDS, MAX_HASHED, PrefixAffinity, prefix_hashes
from tests.site import Site


def chat(*messages: str, **more: object) -> bytes:
    said = [{"role": "user", "content": text} for text in messages]
    return json.dumps({"model": "tiny", "messages": said, **more}).encode()


LONG = ["abc " * 300, "def " * 100]


def common(one: bytes, other: bytes) -> int:
    """How many beginnings they share."""
    pairs = zip(prefix_hashes(one), prefix_hashes(other), strict=False)
    count = 0
    for mine, yours in pairs:
        if mine != yours:
            break
        count += 1
    return count


def test_a_conversation_that_goes_on_shares_at_least_half_of_what_it_was() -> None:
    before, after = chat(*LONG), chat(*LONG, "and then?", temperature=0.5)
    shared = common(before, after)
    assert shared
    assert BOUNDS[shared - 1] >= len(before) / 2


def test_a_prompt_of_plain_text_has_beginnings_too() -> None:
    text = "Once upon a time " * 100
    one = json.dumps({"model": "tiny", "prompt": text}).encode()
    other = json.dumps({"prompt": text + "there was", "model": "tiny"}).encode()
    assert common(one, other) == 10


def test_other_prompts_and_other_accounts_share_nothing() -> None:
    assert common(chat(*LONG), chat("x" * 1000)) == 0
    mine, yours = prefix_hashes(chat(*LONG), b"mine"), prefix_hashes(chat(*LONG), b"yours")
    assert len(mine) == len(yours) > 0
    assert not set(mine) & set(yours)
    assert mine == prefix_hashes(chat(*LONG), b"mine")


def test_what_stands_before_the_prompt_does_not_matter() -> None:
    body = chat(*LONG)
    longer = body.replace(b"{", b'{"stream_options":{"include_usage":true},', 1)
    assert prefix_hashes(body)[:10] == prefix_hashes(longer)[:10]


def test_text_that_looks_like_a_key_is_none() -> None:
    body = json.dumps({"user": 'the "messages": of "prompt"', "messages": ["x" * 500]}).encode()
    shorter = json.dumps({"messages": ["x" * 500]}).encode()
    assert prefix_hashes(body)[:8] == prefix_hashes(shorter)[:8] != ()


@settings(deadline=None)
@given(st.binary(max_size=400), st.binary(max_size=400), st.integers(0, 200))
def test_any_bytes_have_few_beginnings_and_those_of_their_own_beginning(
    front: bytes, text: bytes, times: int
) -> None:
    body = front + b'"messages"' + text * times
    hashes = prefix_hashes(body)
    assert len(hashes) <= len(BOUNDS)
    assert prefix_hashes(body[: len(body) // 2])[:1] in ((), hashes[:1])
    prefix_hashes(text)


def test_a_huge_body_is_looked_at_in_part_only() -> None:
    body = b'{"messages":["' + b"x" * 50_000_000
    began = time.perf_counter()
    hashes = prefix_hashes(body)
    assert time.perf_counter() - began < 0.05
    assert len(hashes) == len(BOUNDS)
    assert BOUNDS[-1] <= MAX_HASHED
    assert prefix_hashes(b"x" * 50_000_000) == ()


# ── who is remembered ─────────────────────────────────────────────────────────────────────────


async def test_the_longest_beginning_that_was_seen_counts() -> None:
    site = Site()
    one, two = site.node().engine, site.node().engine
    affinity = PrefixAffinity()
    affinity.remember((1, 2, 3, 4), one)
    affinity.remember((1, 2, 30), two)
    assert affinity.find((1, 2, 3, 4)) == ((one.node.id, "engine"), 1.0)
    assert affinity.find((1, 2, 3, 5)) == ((one.node.id, "engine"), BOUNDS[2] / BOUNDS[3])
    assert affinity.find((1, 2, 7)) == ((two.node.id, "engine"), BOUNDS[1] / BOUNDS[2])
    assert affinity.find((9,)) is None
    assert affinity.find(()) is None


async def test_who_was_given_it_last_has_it() -> None:
    site = Site()
    one, two = site.node().engine, site.node().engine
    affinity = PrefixAffinity()
    affinity.remember((1, 2), one)
    affinity.remember((1, 2), two)
    assert affinity.find((1, 2)) == ((two.node.id, "engine"), 1.0)


async def test_what_was_not_used_for_longest_is_forgotten() -> None:
    site = Site()
    engine = site.node().engine
    affinity = PrefixAffinity(most=4)
    affinity.remember((1, 2), engine)
    affinity.remember((3, 4), engine)
    affinity.remember((1, 2), engine)
    affinity.remember((5, 6), engine)
    assert len(affinity) == 4
    assert affinity.find((1, 2)) and affinity.find((5, 6))
    assert affinity.find((3, 4)) is None
    for number in range(1000):
        affinity.remember((number, -number), engine)
        assert len(affinity) <= 4
