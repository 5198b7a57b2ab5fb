"""What a response holds back, and how long; its connection is a fake that is only written to."""

from __future__ import annotations

import pytest

from fabric_server.jobs.held_response import HeldResponse
from fabric_server.metering.answer_ids import MAX_ANSWER
from fabric_server.net.memory_budget import BudgetLimits, MemoryBudget

BODY = b'{"id":"resp_1","output":[]}'
DELTA = b'data: {"type":"response.output_text.delta","delta":"response.completed"}\n\n'
LAST = b'data: {"type":"response.completed","response":%b}\n\n' % BODY


class Connection:
    paused = False

    def __init__(self) -> None:
        self.sent = b""
        self.ends: list[str] = []

    def send(self, data: bytes) -> None:
        self.sent += data

    def response_finished(self) -> None:
        self.ends.append("finished")

    def response_aborted(self) -> None:
        self.ends.append("aborted")


class Held:
    def __init__(self, *, streamed: bool, memory: int = 2**30, status: int = 200) -> None:
        self.budget = MemoryBudget(BudgetLimits(memory, memory))
        self.connection = Connection()
        holding = self.budget.open("key")
        self.response = HeldResponse(self.connection, holding, streamed=streamed)
        self.response.send_head(status, b"", chunked=False, no_body=False)


@pytest.mark.parametrize("streamed", [False, True])
def test_the_end_of_an_answer_waits_for_its_release(streamed: bool) -> None:
    held = Held(streamed=streamed)
    response, connection = held.response, held.connection
    pieces = [DELTA, LAST[:30] + LAST[30:]] if streamed else [BODY[:9], BODY[9:]]
    for piece in pieces:
        response.write(piece)
    response.finish()
    assert connection.sent == (DELTA if streamed else b"")
    assert not response.finished
    assert response.bytes_out == sum(map(len, pieces)), "as the ledger reads it now"
    answer = response.answer()
    assert answer is not None
    assert bytes(answer["id"]) == b'"resp_1"'
    assert held.budget.held_by("key") > 0
    response.release()
    assert (connection.sent, connection.ends) == (b"".join(pieces), ["finished"])
    assert response.finished
    assert response.bytes_out == len(connection.sent)
    assert held.budget.held_by("key") == 0


@pytest.mark.parametrize("memory", [2**30, 1])
def test_what_has_no_room_is_passed_on(memory: int) -> None:
    held = Held(streamed=False, memory=memory)
    data = b"x" * (MAX_ANSWER + 1 if memory > 1 else 10)
    held.response.write(data)
    assert held.connection.sent == data
    held.response.write(b"y")
    held.response.finish()
    assert held.connection.ends == ["finished"]
    assert held.response.answer() is None
    held.response.release()
    assert (held.connection.sent, held.connection.ends) == (data + b"y", ["finished"])
    assert held.budget.held == 0


def test_an_error_is_never_held_back() -> None:
    held = Held(streamed=False, status=400)
    held.response.write(BODY)
    held.response.finish()
    assert (held.connection.sent, held.connection.ends) == (BODY, ["finished"])
    assert held.response.answer() is None


def test_an_answer_that_breaks_off_is_cut_with_all_that_came() -> None:
    held = Held(streamed=True)
    held.response.write(LAST)
    held.response.abort()
    assert held.response.answer() is None
    held.response.release()
    assert (held.connection.sent, held.connection.ends) == (LAST, ["aborted"])
    assert held.budget.held == 0


def test_what_nobody_reads_is_dropped() -> None:
    held = Held(streamed=False)
    held.response.write(BODY)
    held.response.finish()
    held.response.drop()
    held.response.release()
    assert (held.connection.sent, held.connection.ends) == (b"", [])
    assert held.budget.held == 0
