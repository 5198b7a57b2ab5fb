"""What clients can make the server hold: bounded per key and in all, and given back in the end."""

from __future__ import annotations

import asyncio
import gc
import json
import tracemalloc
from random import Random
from typing import Any

import pytest

from fabric_server.net.memory_budget import PIECE, UNCOUNTED, BudgetLimits, MemoryBudget
from tests.site import CHAT, DONE, Site, ask, begin_stream, chunk, turns
from tests.users import MemoryUser, request

MIB = 2**20


def large(size: int, **more: Any) -> bytes:
    """A chat whose model comes last."""
    content = "x" * size
    return json.dumps(
        {"messages": [{"role": "user", "content": content}], **more, "model": "tiny"}
    ).encode()


def begin(site: Site, sent: int, size: int = 30 * MIB, **headers: str) -> MemoryUser:
    """A user who has sent the beginning of a body whose model never comes."""
    user = site.user()
    given = {**site.key, "content_length": str(size), **headers}
    user.send(request("POST", CHAT, b"", **given))
    user.send(large(sent)[:sent])
    return user


async def settle(*users: MemoryUser) -> None:
    """Let the server read all that users have sent, or refuse it."""
    for _ in range(20_000):
        if all(user.closed or user.received or not user.pending for user in users):
            break
        await asyncio.sleep(0)
    await turns(400)  # large bodies are read in slices


async def test_bodies_whose_model_never_comes_are_bounded_by_their_key() -> None:
    limits = BudgetLimits(in_all=64 * MIB, per_key=8 * MIB)
    site = Site(memory=MemoryBudget(limits))
    users = [begin(site, 2 * MIB) for _ in range(10)]
    await settle(*users)
    refused = [user for user in users if user.received]
    assert refused
    for user in refused:
        answer = await user.answer()
        assert (answer.status, answer.code) == (429, "too_much_in_flight")
        assert answer.headers["retry-after"] == "2"
        assert answer.headers["connection"] == "close"
    assert 6 * MIB <= site.memory.held <= 8 * MIB
    # Another key's request is answered meanwhile.
    node = site.node()
    other = site.user()
    other.send(request("POST", CHAT, large(MIB), **site.make_key()))
    call = await node.call()
    call.answer(200, b'{"choices":[]}')
    assert (await other.answer()).status == 200
    for user in users:
        user.hang_up()
    await turns()
    assert site.memory.held == 0


async def test_over_the_bound_of_all_everybody_is_told_that_the_server_is_full() -> None:
    site = Site(memory=MemoryBudget(BudgetLimits(in_all=2 * MIB, per_key=2 * MIB)))
    first = begin(site, MIB + MIB // 2)
    await settle(first)
    second = begin(site, MIB, **site.make_key())
    await settle(second)
    answer = await second.answer()
    assert (answer.status, answer.code) == (503, "overloaded")
    assert answer.headers["retry-after"] == "2"
    first.hang_up()
    await turns()
    assert site.memory.held == 0


async def test_a_connection_without_a_key_is_not_read_ahead() -> None:
    """The key's look-up takes as long as the store does; meanwhile its body waits at the client."""
    site = Site()
    gate = asyncio.Event()
    keys = site.keys

    class Slow(type(keys)):  # type: ignore[misc]
        async def key_by_hash(self, digest: bytes) -> Any:
            await gate.wait()
            return self.rows.get(digest)

    keys.__class__ = Slow
    user = begin(site, 4 * MIB)
    await turns(50)
    assert user.pending > 3 * MIB
    assert site.memory.held_by("") <= 2 * PIECE
    gate.set()
    await settle(user)
    assert not user.pending
    assert site.memory.held_by("") == 0
    user.hang_up()
    await turns()
    assert site.memory.held == 0


async def test_a_server_short_of_memory_takes_no_new_request_and_finishes_others() -> None:
    site = Site()
    node = site.node()
    running, call = await begin_stream(site, node)
    site.memory.closed = True
    answer = await ask(site).answer()
    assert (answer.status, answer.code) == (503, "overloaded")
    assert answer.headers["retry-after"] == "2"
    assert node.idle
    assert [entry.outcome for entry in site.ledger] == ["refused"]
    call.data(chunk(None) + DONE)
    call.end()
    assert (await running.answer()).body.endswith(DONE)
    site.memory.closed = False
    user = ask(site)
    (await node.call()).answer(200, b"{}")
    assert (await user.answer()).status == 200


async def test_a_small_request_counts_nothing() -> None:
    site = Site()
    node = site.node()
    user = site.user()
    user.send(request("POST", CHAT, large(UNCOUNTED - 200), **site.key))
    call = await node.call()
    assert site.memory.held == 0
    call.answer(200, b"{}")
    await user.answer()


async def test_a_body_is_given_back_once_its_answer_begins() -> None:
    site = Site()
    node = site.node()
    user = site.user()
    user.send(request("POST", CHAT, large(100_000, stream=True), **site.key))
    call = await node.call()
    assert site.memory.held >= 100_000
    call.begin_stream()
    call.data(chunk("Hi"))
    await user.until(b"Hi")
    assert site.memory.held == 0
    user.hang_up()


async def test_answers_that_nobody_reads_are_counted_and_cut_when_there_is_no_room() -> None:
    site = Site(memory=MemoryBudget(BudgetLimits(in_all=64 * MIB, per_key=MIB)))
    node = site.node(slots=20)
    users = [(await begin_stream(site, node))[0] for _ in range(6)]
    for user in users:
        user.stop_reading()
    assert 0 < site.memory.held <= MIB
    await turns()
    cut = [user for user in users if user.aborted]
    assert 0 < len(cut) < len(users)
    for user in users:
        if not user.aborted:
            user.read_on()
    await turns()
    assert site.memory.held == 0


@pytest.mark.parametrize("seed", range(12))
async def test_after_any_mix_of_outcomes_nothing_is_counted(seed: int) -> None:
    rng = Random(seed)
    limits = BudgetLimits(in_all=3 * MIB, per_key=2 * MIB)
    site = Site(memory=MemoryBudget(limits))
    node = site.node(slots=3)
    keys = [site.key, site.make_key(), {"authorization": "Bearer sk-fab-" + "x" * 43}, {}]
    users: list[MemoryUser] = []
    for _ in range(60):
        does = rng.randrange(8)
        user = rng.choice(users) if users and does > 3 else site.user()
        users.append(user)
        key = rng.choice(keys)
        size = rng.choice([10, 20_000, 100_000, 300_000, 900_000])
        body = rng.choice(
            [large(size), large(size, stream=True), b"[" * size, b'{"a":"' + b"b" * size]
        )
        if does <= 2 and not user.closed:
            user.send(request("POST", CHAT, body, **key) * rng.choice([1, 1, 3]))
        elif does == 3:
            user.send(request("POST", CHAT, b"", content_length=str(10 * MIB), **key) + body)
        elif does == 4:
            user.hang_up()
        elif does == 5 and not user.closed:
            user.stop_reading()
        elif does == 6 and not user.closed:
            user.read_on()
        if rng.random() < 0.5:
            await turns(rng.randrange(12))
        if not node.idle:
            call = await node.call()
            answer = rng.randrange(4)
            if answer == 0:
                call.answer(200, b'{"choices":[]}')
            elif answer == 1:
                call.begin_stream()
                call.data(chunk("Hi"))
            elif answer == 2:
                call.stream.reset(3, "scripted")
            else:
                call.answer(500, b"{}")
        assert site.memory.held <= limits.in_all
    if rng.random() < 0.5:
        site.edge.close()
    for user in users:
        user.hang_up()
    await turns(50)
    assert site.memory.held == 0
    assert site.edge.connections == 0


@pytest.mark.parametrize("end", ["hang-up", "bad JSON", "no such model", "answered"])
async def test_a_large_body_is_gone_with_its_request_before_garbage_is_collected(end: str) -> None:
    site = Site()
    node, user = site.node(), site.user()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        user.send(request("POST", CHAT, b"", **{**site.key, "content_length": str(6 * MIB)}))
        user.send(b'{"messages":["' + b"x" * (4 * MIB))
        await settle(user)
        assert tracemalloc.get_traced_memory()[0] > 4 * MIB
        if end == "hang-up":
            user.hang_up()
        elif end == "bad JSON":
            user.send(b'"}}}' + b" " * 1000)
            assert (await user.answer()).status == 400
        else:
            model = "tiny" if end == "answered" else "none"
            rest = b'"],"model":"%s"' % model.encode()
            user.send(rest + b" " * (2 * MIB - len(rest) - 15) + b"}")
            if end == "answered":
                (await node.call()).answer(200, b"{}")
            assert (await user.answer()).status == (200 if end == "answered" else 404)
        await turns(400)
        assert site.memory.held == 0
        del user
        assert tracemalloc.get_traced_memory()[0] < MIB
    finally:
        tracemalloc.stop()
        gc.enable()
