"""What happens when the store fails; it is a fake that fails when it is told to."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any

import pytest

from fabric_server.edge.request import Request
from fabric_server.jobs.internal_request import BufferedResponse
from fabric_server.jobs.stored_answers import (
    RETRY_SECONDS,
    SLOW_SECONDS,
    NewAnswer,
    StoredAnswers,
    StoredLimits,
)
from fabric_server.net.memory_budget import MemoryBudget
from fabric_server.storage.answers import AnswerRow
from runtime.errors import RecordError, StoreError

LOST, AGAIN = "a chat completion was not stored", "answers are stored again"


@dataclass
class Store:
    error: Exception | None = None
    stuck: bool = False
    rows: list[str] = field(default_factory=list)
    tried: int = 0

    async def add(self, row: AnswerRow, *, max_bytes: int) -> bool:
        self.tried += 1
        if self.stuck:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        if row.id in self.rows:
            return False
        self.rows.append(row.id)
        return True


@dataclass
class Place:
    store: Store = field(default_factory=Store)
    now: float = 100.0
    takes: float = 0.0
    """Seconds by which the clock moves while the store is asked."""

    def __post_init__(self) -> None:
        store: Any = self.store
        self.answers = StoredAnswers(
            store,
            MemoryBudget(),
            StoredLimits(account_bytes=2**20, days=1.0, write_seconds=0.01),
            monotonic=self.tick,
        )

    def tick(self) -> float:
        self.now += self.takes
        return self.now

    async def add(self, id: str) -> None:
        request = Request(BufferedResponse(None, 100, MemoryBudget(), "key"), f"req_{id}", 0.0)
        new = NewAnswer(account="acme", kind="chat", id=id, given=b"[]", answer=b"{}")
        await self.answers.add(request, new)


@pytest.mark.parametrize("failure", ["slow", "stuck"])
async def test_a_failure_is_logged_once_and_nobody_waits_for_the_store_meanwhile(
    failure: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = Place()
    if failure == "slow":
        place.store.error, place.takes = StoreError("it is away"), SLOW_SECONDS + 0.1
    place.store.stuck = failure == "stuck"
    with caplog.at_level(logging.WARNING, "fabric.responses"):
        for id in ("one", "two", "three"):
            await place.add(id)
        assert place.store.tried == 1
        place.now += RETRY_SECONDS
        await place.add("four")
        await place.add("five")
        assert place.store.tried == 2, "one tries again, the next does not"
        assert [record.message for record in caplog.records] == [LOST]
        assert caplog.records[0].__dict__["request"] == "req_one"
        place.store.error, place.store.stuck = None, False
        place.now += RETRY_SECONDS
        await place.add("six")
        await place.add("seven")
    assert place.store.rows == ["six", "seven"]
    assert [record.message for record in caplog.records] == [LOST, AGAIN]
    assert caplog.records[1].__dict__["not_stored"] == 5


async def test_after_a_failure_that_takes_no_time_the_next_answer_is_stored(
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = Place()
    place.store.error = StoreError("the connection was lost")
    with caplog.at_level(logging.WARNING, "fabric.responses"):
        await place.add("one")
        await place.add("two")
        place.store.error = None
        await place.add("three")
    assert place.store.rows == ["three"]
    assert [record.message for record in caplog.records] == [LOST, AGAIN]
    assert caplog.records[1].__dict__["not_stored"] == 2


async def test_others_do_not_wait_for_the_one_that_tries_again() -> None:
    place = Place()
    place.store.stuck = True
    await place.add("one")
    place.now += RETRY_SECONDS
    trying = asyncio.create_task(place.add("two"))
    await asyncio.sleep(0)
    await place.add("three")
    assert place.store.tried == 2
    assert not trying.done()
    await trying


async def test_after_a_client_that_hangs_up_the_next_answer_tries_the_store() -> None:
    place = Place()
    place.store.stuck = True
    await place.add("one")
    place.now += RETRY_SECONDS
    trying = asyncio.create_task(place.add("two"))
    await asyncio.sleep(0)
    trying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trying
    place.store.stuck = False
    await place.add("three")
    assert place.store.rows == ["three"]


async def test_a_store_that_refuses_a_row_is_there_again(caplog: pytest.LogCaptureFixture) -> None:
    place = Place()
    place.store.stuck = True
    await place.add("one")
    place.now += RETRY_SECONDS
    place.store.stuck, place.store.error = False, RecordError("it has a value")
    with caplog.at_level(logging.WARNING, "fabric.responses"):
        await place.add("two")
        place.store.error = None
        await place.add("three")
    assert place.store.rows == ["three"]
    assert [record.message for record in caplog.records] == [LOST, AGAIN, LOST]


async def test_an_id_that_is_there_already_is_told_as_such(
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = Place()
    with caplog.at_level(logging.WARNING, "fabric.responses"):
        await place.add("one")
        await place.add("one")
    assert caplog.records[0].__dict__["reason"] == "its id is stored already"


async def test_an_answer_that_can_not_be_stored_is_no_failure_of_the_store(
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = Place()
    place.store.error = RecordError("it has a value that no column takes")
    with caplog.at_level(logging.WARNING, "fabric.responses"):
        await place.add("one")
        place.store.error = None
        await place.add("two")
    assert place.store.rows == ["two"]
    assert [record.message for record in caplog.records] == [LOST]
