"""Slices of large bodies get half of the loop's time together, however many bodies there are."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest

from fabric_server.dialects.json_scanner import SLICE
from fabric_server.edge.slices import SECONDS, UNWANTED_RATE, LoopShare, UnwantedBytes

COST = 0.001
"""Seconds that each slice takes of the clock below."""


class Clock:
    """Time that passes only by work: a slice's, or a turn's of everything else."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow:
    """A reader that works ``COST`` on each slice."""

    def __init__(self, clock: Clock, log: list[tuple[str, float]], name: str) -> None:
        self.clock = clock
        self.log = log
        self.name = name
        self.data = b""

    def feed(self, data: bytes) -> None:
        self.clock.now += COST
        self.data += data
        self.log.append((self.name, self.clock.now))


async def others(clock: Clock, log: list[tuple[str, float]], until: asyncio.Task[object]) -> None:
    """Do a tenth of a slice's work in each turn of the loop."""
    while not until.done():
        clock.now += COST / 10
        log.append(("others", clock.now))
        await asyncio.sleep(0)


@pytest.mark.parametrize("count", [1, 8])
async def test_others_run_in_between_however_many_bodies_are_read(count: int) -> None:
    clock, log = Clock(), list[tuple[str, float]]()
    share = LoopShare(asyncio.get_running_loop(), clock)
    readers = [Slow(clock, log, f"{number}") for number in range(count)]
    data = bytes(range(256)) * (SLICE // 256 * 12) + b"end"

    async def read() -> None:
        async with asyncio.TaskGroup() as group:
            for reader in readers:
                group.create_task(share.feed(reader, data))

    reading = asyncio.create_task(read())
    await others(clock, log, reading)
    await reading
    assert [reader.data for reader in readers] == [data] * count
    at = [number for number, (name, _) in enumerate(log) if name != "others"]
    longest = 0.0  # that readers work without a turn of the others
    began = log[at[0]][1] - COST
    for here, there in pairwise(at):
        if there != here + 1:
            began = log[there][1] - COST
        longest = max(longest, log[there][1] - began)
    assert longest <= SECONDS + 2 * COST


async def test_a_reader_that_has_gone_keeps_nobody_waiting() -> None:
    clock, log = Clock(), list[tuple[str, float]]()
    share = LoopShare(asyncio.get_running_loop(), clock)
    gone, stays = Slow(clock, log, "gone"), Slow(clock, log, "stays")
    data = bytes(SLICE * 8)
    going = asyncio.create_task(share.feed(gone, data))
    staying = asyncio.create_task(share.feed(stays, data))
    await asyncio.sleep(0)
    going.cancel()
    await others(clock, log, staying)
    assert len(stays.data) == len(data)
    assert len(gone.data) < len(data)


async def test_what_a_reader_raises_ends_its_body_only() -> None:
    class Bad:
        def feed(self, data: bytes) -> None:
            raise ValueError("bad")

    clock, log = Clock(), list[tuple[str, float]]()
    share = LoopShare(asyncio.get_running_loop(), clock)
    with pytest.raises(ValueError, match="bad"):
        await share.feed(Bad(), b"x")
    good = Slow(clock, log, "good")
    await share.feed(good, b"x")
    assert good.data == b"x"


def test_unwanted_bytes_of_many_connections_keep_to_one_rate() -> None:
    unwanted, size, count = UnwantedBytes(), 256 * 1024, 60
    turns = [unwanted.next_turn(size, 0.0) for _ in range(count)]
    assert turns == sorted(turns)
    assert turns[-1] == pytest.approx(size * count / UNWANTED_RATE)
    assert unwanted.next_turn(size, 60.0) == pytest.approx(60 + size / UNWANTED_RATE), "none saved"
