"""What is taken for a change of the network; end_to_end/test_network_changes.py has a kernel."""

from __future__ import annotations

import asyncio
import struct
import sys
from collections.abc import AsyncGenerator
from random import Random

from fabric_client.registration import network_watch
from fabric_client.registration.network_watch import (
    ANYWHERE,
    BURST,
    HAS_CARRIER,
    MAX_INTERFACES,
    Carriers,
    ClockEvents,
    addresses_towards,
    network_changes,
    open_events,
)
from tests.loops import on_both_loops

NEW_LINK, DELETED_LINK, NEW_ROUTE = 16, 17, 24
UP, DOWN = HAS_CARRIER, 0


def message(index: int, flags: int, kind: int = NEW_LINK, rest: bytes = b"") -> bytes:
    body = struct.pack("=BxHiII", 0, 1, index, flags, 0) + rest
    padding = bytes(-len(body) % 4)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body + padding


# ── carriers ──────────────────────────────────────────────────────────────────────────────────


def test_a_cable_that_is_plugged_in_again_is_a_change() -> None:
    carriers = Carriers([1, 2])
    assert not carriers.read(message(2, UP)), "it had never lost it"
    assert not carriers.read(message(2, DOWN))
    assert not carriers.read(message(1, UP))
    assert carriers.read(message(2, UP, rest=b"attributes"))
    assert not carriers.read(message(2, UP))


def test_an_interface_that_is_made_as_for_a_container_is_none() -> None:
    carriers = Carriers([1])
    assert not carriers.read(message(7, DOWN) + message(7, DOWN) + message(7, UP))
    assert not carriers.read(message(7, DOWN) + message(7, UP, DELETED_LINK))
    assert not carriers.read(message(7, UP)), "another one of the same number"


def test_several_messages_in_a_datagram_are_all_read() -> None:
    carriers = Carriers([1])
    assert carriers.read(message(1, DOWN, rest=b"odd") + message(9, UP, NEW_ROUTE) + message(1, UP))


def test_any_bytes_are_read_and_nothing_grows_without_a_bound() -> None:
    carriers, rng = Carriers([1]), Random(1)
    for size in range(200):
        carriers.read(rng.randbytes(size))
        carriers.read(message(1, UP)[:size])
        carriers.read(struct.pack("=I", size) + message(1, UP)[4:])
    for index in range(2 * MAX_INTERFACES):
        carriers.read(message(index, UP))
    assert len(vars(carriers)["_has_carrier"]) == MAX_INTERFACES


# ── what is told ──────────────────────────────────────────────────────────────────────────────


class Told:
    """Stands for the kernel's notices, which a test can't make without a network of its own."""

    def __init__(self) -> None:
        self.queue = asyncio.Queue[bool]()
        self.closed = False

    async def wait(self) -> bool:
        return await self.queue.get()

    def close(self) -> None:
        self.closed = True


async def soon(changes: AsyncGenerator[tuple[str, ...], None]) -> tuple[str, ...] | None:
    try:
        async with asyncio.timeout(0.2):
            return await anext(changes)
    except TimeoutError:
        return None


@on_both_loops
async def test_only_what_makes_a_difference_is_told() -> None:
    events = Told()
    changes = network_changes(lambda: ["127.0.0.1"], events)
    for certain in (False, False, True):
        events.queue.put_nowait(certain)
    assert await soon(changes) == ("127.0.0.1",)
    assert events.queue.empty()
    await changes.aclose()
    assert events.closed


@on_both_loops
async def test_a_network_that_leads_nowhere_is_no_reason_to_dial() -> None:
    events = Told()
    changes = network_changes(lambda: ["not an address"], events)
    events.queue.put_nowait(True)
    assert await soon(changes) is None
    await changes.aclose()


@on_both_loops
async def test_another_server_is_no_change_of_the_network() -> None:
    events, servers = Told(), ["not an address"]
    changes = network_changes(lambda: servers, events)
    events.queue.put_nowait(False)
    asyncio.get_running_loop().call_later(0.05, servers.__setitem__, 0, "127.0.0.1")
    asyncio.get_running_loop().call_later(0.06, events.queue.put_nowait, False)
    asyncio.get_running_loop().call_later(0.07, events.queue.put_nowait, False)
    assert await soon(changes) is None
    await changes.aclose()


@on_both_loops
async def test_a_loose_cable_makes_no_storm() -> None:
    events = Told()
    changes = network_changes(lambda: ["127.0.0.1"], events)
    for _ in range(100):
        events.queue.put_nowait(True)
    told = 0
    while await soon(changes) is not None:
        told += 1
    assert told == BURST
    await changes.aclose()


def test_looking_sends_nothing_and_says_so_when_there_is_no_way() -> None:
    assert addresses_towards(["127.0.0.1", "not an address"]) == ("127.0.0.1", "")
    assert len(addresses_towards(ANYWHERE)) == 2


@on_both_loops
async def test_this_machine_has_events_of_some_kind() -> None:
    events = open_events()
    assert isinstance(events, ClockEvents) == (sys.platform != "linux")
    events.close()
    assert await ClockEvents().wait() is False


def test_the_numbers_are_the_kernels() -> None:
    assert (network_watch.NEW_LINK, network_watch.DELETED_LINK) == (NEW_LINK, DELETED_LINK)
    assert network_watch.GROUPS == 0x551
