"""Wrong keys by address: which answers wait, for how long, and what the log says of them."""

from __future__ import annotations

import asyncio
import logging

import pytest

from fabric_server.net.failure_throttle import (
    MAX_LINES,
    Client,
    FailureThrottle,
    ThrottleLimits,
)

CODE = "invalid_api_key"


class Sender(Client):
    """A client who waits no time, and remembers."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.suspected = 0
        self.waited: list[float] = []

    @property
    def client_address(self) -> str:
        return self.address

    def suspect(self) -> None:
        self.suspected += 1

    async def pause(self, seconds: float) -> None:
        self.waited.append(seconds)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def waits(throttle: FailureThrottle, client: Client, count: int) -> list[float]:
    return [throttle.count("api_key", CODE, client) for _ in range(count)]


LIMITS = ThrottleLimits(burst=3, per_second=0.5, longest=5.0)


def test_after_a_burst_answers_wait_up_to_a_limit_and_that_ends_soon() -> None:
    clock = Clock()
    throttle, stranger = FailureThrottle(LIMITS, clock), Sender("203.0.113.9")
    assert waits(throttle, stranger, 3) == [0.0] * 3
    assert stranger.suspected == 0
    assert waits(throttle, stranger, 100) == [2.0, 4.0] + [5.0] * 98
    assert stranger.suspected == 100
    clock.now += 6.0
    assert waits(throttle, stranger, 1) == [0.0]
    clock.now += 60.0
    assert waits(throttle, stranger, 4) == [0.0] * 3 + [2.0]
    assert throttle.failures == {"api_key": 108, "management_key": 0, "invitation": 0}
    assert throttle.held == {"api_key": 101, "management_key": 0, "invitation": 0}


def test_each_address_and_each_network_of_ipv6_counts_for_itself() -> None:
    throttle = FailureThrottle(LIMITS, Clock())
    for end in range(1, 4):
        assert waits(throttle, Sender(f"2001:db8:0:1::{end}"), 1) == [0.0]
    assert waits(throttle, Sender("2001:db8:0:1:ffff::1"), 1) == [2.0]
    assert waits(throttle, Sender("2001:db8:0:2::1"), 1) == [0.0]
    assert waits(throttle, Sender("203.0.113.9"), 3) == [0.0] * 3
    assert waits(throttle, Sender("::ffff:203.0.113.9"), 1) == [2.0]
    assert waits(throttle, Sender("203.0.113.10"), 1) == [0.0]


def test_secrets_of_all_kinds_count_together() -> None:
    throttle, stranger = FailureThrottle(LIMITS, Clock()), Sender("203.0.113.9")
    assert throttle.count("api_key", CODE, stranger) == 0.0
    assert throttle.count("management_key", CODE, stranger) == 0.0
    assert throttle.count("invitation", "invitation_unknown", stranger) == 0.0
    assert throttle.count("invitation", "invitation_unknown", stranger) == 2.0


def test_who_has_many_addresses_waits_as_well_and_the_table_stays_small(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "fabric.keys")
    limits = ThrottleLimits(burst_in_all=500, addresses=100)
    throttle = FailureThrottle(limits, Clock())
    senders = [Sender(f"2001:db8:0:{number:x}::1") for number in range(2000)]
    waited = [waits(throttle, sender, 1)[0] for sender in senders]
    assert waited[:500] == [0.0] * 500
    assert all(seconds > 0 for seconds in waited[500:])
    assert waited[-1] == limits.longest
    assert len(throttle._origins) == 100
    assert not any(sender.suspected for sender in senders)  # none of them did much

    throttle.write_log()
    lines = [record.__dict__ for record in caplog.records]
    assert len(lines) == MAX_LINES + 1
    assert sum(line["count"] for line in lines) == 2000
    assert lines[-1]["addresses"] == 2000 - MAX_LINES


async def test_the_log_has_one_line_for_each_address_and_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "fabric.keys")
    throttle = FailureThrottle(LIMITS, Clock())
    flood, one = Sender("2001:db8::5"), Sender("198.51.100.4")
    for _ in range(20):
        await throttle.hold("api_key", CODE, flood)
    await throttle.hold("invitation", "invitation_used", one)
    assert flood.waited == [2.0, 4.0] + [5.0] * 15
    assert one.waited == []
    assert caplog.records == []
    throttle.write_log()
    told = [
        (line["address"], line["count"], line["held_back"], line["code"])
        for line in (record.__dict__ for record in caplog.records)
    ]
    assert told == [
        ("2001:db8::/64", 20, 17, CODE),
        ("198.51.100.4", 1, 0, "invitation_used"),
    ]
    caplog.clear()
    throttle.write_log()
    assert caplog.records == []


async def test_what_was_not_logged_yet_is_logged_at_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "fabric.keys")
    throttle = FailureThrottle(LIMITS, Clock())
    task = asyncio.create_task(throttle.run())
    await asyncio.sleep(0)
    await throttle.hold("management_key", CODE, Sender("203.0.113.9"))
    task.cancel()
    await asyncio.wait([task])
    assert [record.__dict__["count"] for record in caplog.records] == [1]
