"""Tunnels on transports in memory."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest

from protocol.aio.memory import connect
from protocol.aio.node import NodeStream
from protocol.errors import Code
from protocol.messages import Figures, RequestHead, ResponseHead
from protocol.tunnel.streams import STREAM_WINDOW
from tests.loops import on_both_loops
from tests.protocol.aio.ends import (
    Answer,
    Echo,
    Ends,
    joined,
    turns,
    within,
)
from tests.pump import HEAD, SESSION, frames_in


@on_both_loops
async def test_a_question_and_its_answer_in_memory():
    ends = Ends().in_memory()
    await turns()
    assert ends.server_owner.heard == ["hello b'session'"]
    answer = ends.ask(b"question")
    await turns()
    assert answer.heard == ["head 200", "end"]
    assert bytes(answer.body) == b"question"
    assert ends.server.peer == "in process"
    ends.server.drain("restarting", 1)
    await turns()
    assert ends.node_owner.heard == ["drain 'restarting' 1 s", "closed none 'drained'"]


@on_both_loops
async def test_everything_said_in_one_turn_is_one_write():
    ends = Ends()
    left, right = joined(ends)
    await turns()
    left.writes.clear()
    right.writes.clear()
    answers = [ends.ask(b"question") for _ in range(10)]
    await turns()
    assert all(answer.heard == ["head 200", "end"] for answer in answers)
    assert [len(list(frames_in(write))) for write in left.writes] == [20]
    assert [len(list(frames_in(write))) for write in right.writes] == [30]


@on_both_loops
async def test_commands_before_the_connection_is_made_go_out_with_it():
    ends = Ends()
    ends.node.hello(SESSION)
    await turns()
    connect(ends.server, ends.node, asyncio.get_running_loop())
    await turns()
    assert ends.server_owner.heard == ["hello b'session'"]


class Broken(Answer):
    """Fails where it is told to."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_") and name == super().__getattribute__("where"):

            def fail(*_: object) -> None:
                raise ZeroDivisionError("a defect")

            return fail
        return super().__getattribute__(name)


@pytest.mark.parametrize("where", ["on_head", "on_data", "on_end"])
@on_both_loops
async def test_a_handler_that_fails_costs_only_its_stream(where, caplog):
    ends = Ends().in_memory()
    await turns()
    broken, fine = Broken(where), Answer()
    for answer in (broken, fine):
        answer.stream = ends.server.open(HEAD, answer, ended=False)
        answer.stream.send(b"question", True)
    await turns()
    assert fine.heard == ["head 200", "end"]
    assert "a defect" in caplog.text
    assert ends.server_owner.heard == ["hello b'session'"]
    assert ends.server.connection.active == ends.node.connection.active == 0
    assert broken.heard[-1] == "reset internal", "whoever waits for it is told"


@on_both_loops
async def test_a_node_that_fails_to_accept_says_so(caplog):
    ends = Ends()

    def accept(stream: NodeStream, head: RequestHead, ended: bool) -> None:
        raise ZeroDivisionError("a defect")

    ends.accept = accept  # type: ignore[method-assign, assignment]
    ends.in_memory()
    await turns()
    answer = ends.ask(b"question")
    await turns()
    assert answer.heard == ["reset internal"]
    assert "a defect" in caplog.text
    assert ends.node.connection.active == 0


class Stubborn(Echo):
    def on_reset(self, code: int, reason: str) -> None:
        raise ZeroDivisionError("a defect")


@on_both_loops
async def test_a_node_that_fails_to_stop_still_gives_the_slot_back(caplog):
    ends = Ends()
    ends.accept = lambda stream, head, ended: Stubborn(stream)  # type: ignore[method-assign]
    ends.in_memory()
    await turns()
    answer = ends.ask(b"question", ended=False)
    await turns()
    assert answer.stream is not None
    answer.stream.reset(Code.CANCELLED)
    await turns()
    assert answer.heard == ["reset none"]
    assert "a defect" in caplog.text
    assert ends.server.connection.active == 0


@on_both_loops
async def test_an_owner_that_fails_costs_the_tunnel_and_says_so(caplog):
    ends = Ends()

    def fail(*_: object) -> None:
        raise ZeroDivisionError("a defect")

    ends.server_owner.on_hello = fail  # type: ignore[method-assign]
    ends.in_memory()
    await turns()
    assert ends.node_owner.heard == ["closed internal 'defect'"]
    assert "a defect" in caplog.text


@on_both_loops
async def test_a_cancelled_stream_whose_work_has_ended_is_confirmed():
    ends = Ends().in_memory()
    await turns()
    answer = ends.ask(b"x" * (STREAM_WINDOW + 1), hold=True)
    await turns(40)
    assert answer.heard == ["writable", "head 200"], "the last byte waits for credit"
    assert ends.node.connection.active == 1
    assert answer.stream is not None
    answer.stream.reset(Code.SLOW_READER)
    await turns()
    assert answer.heard[2:] == ["reset none"]
    assert ends.echoes[0].heard == []
    assert ends.node.connection.active == 0


@on_both_loops
async def test_a_reader_that_comes_back_later_gets_the_rest():
    ends = Ends().in_memory()
    await turns()
    answer = ends.ask(b"x" * 2 * STREAM_WINDOW, hold=True)
    await turns(40)
    assert len(answer.body) == STREAM_WINDOW
    assert answer.stream is not None
    answer.stream.consumed(STREAM_WINDOW)
    await turns(40)
    assert len(answer.body) == 2 * STREAM_WINDOW
    assert answer.heard[-1] == "end"


@on_both_loops
async def test_a_close_from_within_a_flush_is_still_said():
    ends = Ends().in_memory()
    await turns()

    class Closing(Answer):
        def on_writable(self) -> None:
            ends.server.close(Code.INTERNAL, "changed my mind")

    answer = Closing()
    stream = answer.stream = ends.server.open(HEAD, answer, ended=False)
    stream.send(b"x" * (STREAM_WINDOW + 1))
    await turns()
    assert ends.node_owner.heard == ["closed internal 'changed my mind'"]


@on_both_loops
async def test_a_writer_hears_when_to_go_on():
    ends = Ends().in_memory()
    await turns()
    answer = Answer()
    stream = answer.stream = ends.server.open(HEAD, answer, ended=False)
    assert stream.send(b"x" * 2 * STREAM_WINDOW) is False
    await turns(40)
    assert answer.heard == ["writable"]
    assert stream.send(b"the end", True) is True
    await turns(40)
    assert answer.heard == ["writable", "head 200", "end"]
    assert len(answer.body) == 2 * STREAM_WINDOW + 7


@on_both_loops
async def test_what_came_before_a_close_is_told_before_it():
    """A handler closes the tunnel; a neighbour's end stood in the same bytes."""
    ends = Ends().in_memory()
    await turns()
    told: list[str] = []

    class Closing(Answer):
        def on_head(self, head: ResponseHead) -> None:
            told.append("head of the first")
            ends.server.close(Code.NONE, "enough")
            told.append("closed")

    class Neighbour(Answer):
        def on_end(self, figures: Figures) -> None:
            told.append("end of the second")

        def on_reset(self, code: int, reason: str) -> None:
            told.append("reset of the second")

    first, second = Closing(), Neighbour()
    for answer in (first, second):
        answer.stream = ends.server.open(HEAD, answer, ended=True)
    await turns()
    assert told == ["head of the first", "end of the second", "closed"]
    assert ends.server_owner.heard[-1] == "closed none 'enough'"


@on_both_loops
async def test_a_tunnel_that_is_over_is_held_by_nothing():
    ends = Ends().in_memory()
    await turns()
    answer = ends.ask(b"question")
    await within(5, answer.over)
    ends.server.close(Code.NONE, "bye")
    await within(5, ends.server_side.gone, ends.node_side.gone)
    await turns()
    refs = [weakref.ref(ends.server_owner), weakref.ref(ends.node_owner)]  # which tunnels hold
    answer.stream = None
    del ends, answer
    gc.collect()
    assert [ref() for ref in refs] == [None, None], "a timer still holds it"
