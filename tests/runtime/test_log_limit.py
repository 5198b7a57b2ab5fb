"""Lines of one event are limited; what is left out is counted, and other events go on."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from runtime import logs
from runtime.log_limit import MAX_EVENTS, MAX_LINES, WINDOW_SECONDS, RepeatLimit

log = logging.getLogger("fabric.flood")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def record(event: str, **fields: object) -> logging.LogRecord:
    return logging.makeLogRecord({"name": "fabric.x", "msg": event, **fields})


def test_a_flood_of_one_event_is_cut_and_says_so() -> None:
    clock = Clock()
    limit = RepeatLimit(clock)
    lines = [record("link refused", peer=f"10.0.0.{n}") for n in range(MAX_LINES + 50)]
    passed = [line for line in lines if limit.filter(line)]
    assert passed == lines[:MAX_LINES]
    assert [hasattr(line, "repeats") for line in passed[-2:]] == [False, True]
    other = record("node joined")
    assert limit.filter(other)
    clock.now += WINDOW_SECONDS
    first, second = record("link refused"), record("link refused")
    assert limit.filter(first)
    assert limit.filter(second)
    assert vars(first)["left_out"] == 50
    assert not hasattr(second, "left_out")


def test_what_an_operator_did_is_never_left_out() -> None:
    limit = RepeatLimit(Clock())
    assert all(limit.filter(record("key created", by="k_1")) for _ in range(3 * MAX_LINES))


def test_events_without_end_take_no_memory_without_end() -> None:
    limit = RepeatLimit(Clock())
    for number in range(3 * MAX_EVENTS):
        assert limit.filter(record(f"event {number}"))
    assert len(vars(limit)["_windows"]) <= MAX_EVENTS


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    level, out = root.level, io.StringIO()
    logs.configure("info", stream=out, json=True)
    yield out
    for handler in [one for one in root.handlers if one.name == logs.__name__]:
        root.removeHandler(handler)
    root.setLevel(level)


def test_the_programs_log_has_the_limit(stream: io.StringIO) -> None:
    for number in range(MAX_LINES + 5):
        log.info("tunnel refused", extra={"peer": f"10.0.0.{number}"})
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(lines) == MAX_LINES
    assert "left out" in lines[-1]["repeats"]
