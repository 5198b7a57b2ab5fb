"""Which jobs are claimed, and when those that found no capacity are retried."""

from __future__ import annotations

from random import Random

from fabric_server.dialects import errors
from fabric_server.jobs.internal_request import InternalResponse, error_response
from fabric_server.jobs.scheduler import MAX_WAIT, VARIANT_WAIT, Scheduler
from fabric_server.storage.jobs import Lane

NOON = 1_750_000_000.0
IDLE = {"job": 0, "line": 0}


def scheduler(**limits: int) -> Scheduler:
    return Scheduler(**{"max_jobs": 4, "max_lines": 2, **limits}, rng=Random(1))


def test_room_is_what_the_limit_leaves() -> None:
    some = scheduler()
    assert some.room({"job": 3, "line": 2}, lines=False) == 1
    assert some.room({"job": 3, "line": 2}, lines=True) == 0
    assert some.has_room({"job": 3, "line": 2})
    assert not some.has_room({"job": 4, "line": 2})


def test_lanes_share_the_room_and_take_turns_when_there_are_more_of_them() -> None:
    some = scheduler()
    two = [Lane("ada", ""), Lane("bob", "")]
    assert sorted((lane.account, count) for lane, count in some.share(two, IDLE)) == [
        ("ada", 2),
        ("bob", 2),
    ]
    many = [Lane(f"account_{n}", "") for n in range(8)]
    first = {lane.account for lane, _ in some.share(many, {"job": 3, "line": 0})}
    second = {lane.account for lane, _ in some.share(many, {"job": 3, "line": 0})}
    assert len(first) == len(second) == 1 and first != second


def test_batches_have_room_of_their_own() -> None:
    lanes = [Lane("ada", ""), Lane("ada", "batch_1")]
    shares = scheduler().share(lanes, {"job": 4, "line": 0})
    assert shares == [(Lane("ada", "batch_1"), 2)]


def test_a_rate_limited_key_is_backed_off_until_it_may_send_again() -> None:
    some = scheduler()
    limited = InternalResponse(429, b"", "req_1", errors.RATE_LIMITED, retry_after=9.0)
    assert some.retry_at("key_1", limited, NOON) == NOON + 9.0
    assert "key_1" in some.backed_off(NOON + 8.9)
    assert "key_1" not in some.backed_off(NOON + 9.0)


def test_jobs_without_capacity_come_back_spread_and_not_too_late() -> None:
    some = scheduler()
    full = InternalResponse(503, b"", "req_1", "no_capacity", retry_after=600.0)
    times = {some.retry_at("key_1", full, NOON) - NOON for _ in range(50)}
    assert len(times) == 50
    assert min(times) >= 0.75 * MAX_WAIT and max(times) <= 1.25 * MAX_WAIT


def test_a_job_that_lacks_its_weights_is_tried_again_later() -> None:
    error = errors.variant_not_found("tiny", "quantization q8_0", "Q4_K_M", "x-fabric-quant")
    response = error_response(error)
    assert response.busy
    at = scheduler().retry_at("key_1", response, NOON) - NOON
    assert 0.75 * VARIANT_WAIT <= at <= 1.25 * VARIANT_WAIT
