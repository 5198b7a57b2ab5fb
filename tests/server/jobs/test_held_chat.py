"""What of a chat's answer is held back; its connection is a fake that is only written to."""

from __future__ import annotations

from typing import Any

import pytest

from fabric_server.auth.keys import mint
from fabric_server.dialects.fields import ParsedBody
from fabric_server.edge.request import Request
from fabric_server.jobs.chat_objects import AskedChat
from fabric_server.jobs.held_answer import NO_MEMORY, TOO_LARGE
from fabric_server.jobs.held_chat import NOT_JSON, HeldChat
from fabric_server.jobs.internal_request import BufferedResponse
from fabric_server.metering.answer_ids import MAX_ANSWER
from fabric_server.metering.usage import Usage
from fabric_server.net.memory_budget import BudgetLimits, MemoryBudget
from fabric_server.proxy.request_record import RequestRecord
from tests.server.jobs.test_held_response import Connection

WHOLE = b'{"id":"chatcmpl-1","choices":[{"index":0,"message":{"content":"a"}}]}'
CHUNK = b'data: {"id":"chatcmpl-1","choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n'
END = b"data: [DONE]\n\n"


class Held:
    def __init__(self, *, streamed: bool, memory: int = 2**30) -> None:
        self.budget = MemoryBudget(BudgetLimits(memory, memory))
        self.connection = Connection()
        key: Any = mint("user", now=0.0, account="acme").row
        request = Request(BufferedResponse(None, 1, self.budget, "key"), "req_1", 0.0)
        self.record = RequestRecord(key, request, None, ParsedBody("tiny", streamed, True, None))
        asked = AskedChat(b"[]", b"{}", "{}")
        holding = self.budget.open("key")
        self.response = HeldChat(self.connection, holding, self.record, asked)
        self.response.send_head(200, b"", chunked=False, no_body=False)

    def end(self, outcome: str = "ok") -> None:
        self.record.outcome = outcome
        self.response.finish()


def test_only_the_last_event_waits_though_it_comes_with_the_whole_stream() -> None:
    held = Held(streamed=True)
    held.response.write(CHUNK % b"a" + CHUNK % b"b" + END)
    assert held.connection.sent == CHUNK % b"a" + CHUNK % b"b"
    held.record.usage = Usage(1, 2)
    held.end()
    assert held.response.bytes_out == len(held.connection.sent) + len(END), "as the ledger reads it"
    answer = held.response.answer()
    assert answer is not None
    assert answer["choices"][0]["message"]["content"] == "ab"
    assert answer["usage"]["total_tokens"] == 3
    held.response.release()
    assert held.connection.sent.endswith(END)
    assert held.connection.ends == ["finished"]
    assert held.budget.held == 0


def test_an_answer_in_one_piece_waits_whole() -> None:
    held = Held(streamed=False)
    held.response.write(WHOLE[:9])
    held.response.write(WHOLE[9:])
    held.end()
    assert (held.connection.sent, held.connection.ends) == (b"", [])
    answer = held.response.answer()
    assert answer is not None
    assert bytes(answer["id"]) == b'"chatcmpl-1"'
    held.response.release()
    assert (held.connection.sent, held.connection.ends) == (WHOLE, ["finished"])


def test_an_answer_in_one_piece_that_is_no_json_is_told_as_such() -> None:
    held = Held(streamed=False)
    held.response.write(WHOLE.replace(b'"index":0', b'"index":NaN'))
    held.end()
    assert (held.response.answer(), held.response.lost) == (None, NOT_JSON)
    held.response.release()


def test_a_stream_that_ends_without_its_mark_waits_for_its_release() -> None:
    held = Held(streamed=True)
    held.response.write(CHUNK % b"a")
    held.end()
    assert (held.connection.sent, held.connection.ends) == (CHUNK % b"a", [])
    assert held.response.answer() is not None
    held.response.release()
    assert held.connection.ends == ["finished"]


@pytest.mark.parametrize("streamed", [False, True])
def test_what_is_not_ok_waits_for_nothing(streamed: bool) -> None:
    held = Held(streamed=streamed)
    held.response.write(CHUNK % b"a" if streamed else WHOLE)
    held.end("failed")
    assert held.response.answer() is None
    held.response.release()
    assert held.connection.sent == (CHUNK % b"a" if streamed else WHOLE)
    assert held.connection.ends == ["finished"]


@pytest.mark.parametrize(("memory", "lost"), [(2**30, TOO_LARGE), (100_000, NO_MEMORY)])
def test_a_stream_that_has_no_room_is_passed_on(memory: int, lost: str) -> None:
    held = Held(streamed=True, memory=memory)
    piece = CHUNK % (b"x" * 60_000)
    for _ in range(40):
        held.response.write(piece)
        assert held.budget.held <= MAX_ANSWER + 2**17
    held.response.write(END)
    held.end()
    assert held.connection.sent == piece * 40 + END
    assert held.connection.ends == ["finished"]
    assert held.response.answer() is None
    assert held.response.lost == lost
    assert held.response.size == 0, "nothing is held any more"
    held.response.release()
    assert (held.connection.ends, held.budget.held) == (["finished"], 0)


def test_what_nobody_reads_is_dropped() -> None:
    held = Held(streamed=True)
    held.response.write(CHUNK % b"a" + END)
    held.end()
    held.response.drop()
    held.response.release()
    assert (held.connection.sent, held.connection.ends) == (CHUNK % b"a", [])
    assert held.budget.held == 0
