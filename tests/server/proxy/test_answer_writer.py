"""What the client gets of an attempt's answer, and when: on a connection that only collects."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from fabric_server.dialects.endpoints import ENDPOINTS
from fabric_server.dialects.errors import ApiError
from fabric_server.edge.request import Body, Request
from fabric_server.proxy.answer_writer import WHOLE_ANSWER, AnswerWriter
from fabric_server.routing.choice import Choice
from protocol.messages import ResponseHead
from tests.site import CHAT, DONE, Site, chunk

STREAM_HEAD = ResponseHead(200, [("content-type", "text/event-stream"), ("content-length", "9")])


class Collected:
    """A connection that keeps what is sent."""

    paused = False

    def __init__(self) -> None:
        self.data = b""

    def send(self, data: bytes) -> None:
        self.data += data

    def client_address(self, headers: Mapping[bytes, bytes]) -> str:
        return ""

    def time(self) -> float:
        return 0.0

    def date(self) -> bytes:
        return b""

    def want_body(self) -> None: ...
    def recognise(self) -> None: ...
    def cors(self, origin: bytes) -> bytes:
        return b""

    def response_finished(self) -> None: ...
    def response_aborted(self) -> None: ...

    def can_discard_rest(self, body: Body) -> bool:
        return True


async def make_writer(
    why: str = "", *, usage_requested: bool = True
) -> tuple[AnswerWriter, Collected]:
    connection = Collected()
    request = Request(connection, "req_1", 0.0)
    request.method, request.path, request.endpoint = "POST", CHAT, ENDPOINTS[CHAT]
    request.body.end()
    engine = Site().node().engine
    return AnswerWriter(request, usage_requested, Choice(engine, why)), connection


def json_head(length: int | None = None, status: int = 200) -> ResponseHead:
    headers = [("content-type", "application/json")]
    if length is not None:
        headers.append(("content-length", str(length)))
    return ResponseHead(status, headers)


def receive(writer: AnswerWriter, data: bytes) -> None:
    writer.bytes_received += len(data)
    writer.hold(data)


async def test_an_engine_s_head_alone_sends_nothing() -> None:
    writer, connection = await make_writer()
    writer.read_head(json_head(2))
    assert (writer.status, writer.announced, writer.streamed) == (200, 2, False)
    assert not writer.started
    assert connection.data == b""


async def test_the_head_says_why_the_engine_was_chosen() -> None:
    writer, connection = await make_writer("the only one that can")
    writer.read_head(json_head(2))
    writer.start()
    assert b"x-fabric-route: the only one that can\r\n" in connection.data


async def test_a_stream_has_no_length_for_events_may_be_taken_out() -> None:
    writer, connection = await make_writer()
    writer.read_head(STREAM_HEAD)
    assert writer.streamed
    assert writer.announced is None
    writer.start()
    assert b"content-length" not in connection.data
    assert b"cache-control: no-cache\r\n" in connection.data


@pytest.mark.parametrize("length", ["-1", "1_0", "", "9" * 16])
async def test_a_length_that_is_none_is_not_announced(length: str) -> None:
    writer, _ = await make_writer()
    writer.read_head(ResponseHead(200, [("content-length", length)]))
    assert writer.announced is None


async def test_an_answer_is_buffered_until_its_end_and_gets_its_length_then() -> None:
    writer, connection = await make_writer()
    writer.read_head(json_head())
    receive(writer, b"{")
    assert connection.data == b""
    writer.flush(b"}")
    assert writer.started
    assert b"content-length: 2\r\n" in connection.data
    assert connection.data.endswith(b"\r\n\r\n{}")


async def test_an_answer_that_is_too_large_to_be_buffered_flows() -> None:
    writer, connection = await make_writer()
    writer.read_head(json_head())
    receive(writer, b"x" * WHOLE_ANSWER)
    assert not writer.started
    receive(writer, b"x")
    assert writer.started
    assert connection.data.count(b"x" * WHOLE_ANSWER) == 1


async def test_the_last_bytes_of_an_announced_answer_wait_for_its_end() -> None:
    writer, connection = await make_writer()
    size = WHOLE_ANSWER + 100
    writer.read_head(json_head(size))
    receive(writer, b"x" * size)
    assert not writer.started
    writer.flush(b"")
    assert connection.data.endswith(b"x" * size)


async def test_the_request_s_body_is_dropped_when_no_other_engine_can_need_it() -> None:
    writer, _ = await make_writer()
    writer.request.body.replay_buffer = b"{}"
    writer.read_head(json_head(2))
    assert writer.request.body.replay_buffer == b"{}"
    writer.start()
    assert writer.request.body.replay_buffer == b""


async def test_after_comments_only_a_stream_or_an_error_fits() -> None:
    for head, misfit in [(STREAM_HEAD, False), (json_head(2), True), (json_head(2, 500), False)]:
        writer, _ = await make_writer()
        writer.request.send_ahead(b": waiting\n\n")
        writer.read_head(head)
        assert writer.misfit is misfit


async def test_a_stream_is_delivered_with_its_very_last_marker() -> None:
    writer, _ = await make_writer()
    writer.read_head(STREAM_HEAD)
    writer.start()
    for data, delivered in [(chunk("Hi"), False), (chunk(None), False), (DONE, True)]:
        writer.request.response.write(writer.meter.feed(data))
        assert writer.delivered is delivered


async def test_an_error_is_an_event_of_a_stream_and_nothing_else_can_show_it() -> None:
    error = ApiError(502, "upstream_lost", "The node was lost.")
    writer, connection = await make_writer()
    writer.read_head(STREAM_HEAD)
    writer.start()
    assert writer.write_error(error)
    assert b"upstream_lost" in connection.data
    writer, connection = await make_writer()
    writer.read_head(json_head(2))
    writer.start()
    assert not writer.write_error(error)
    assert b"upstream_lost" not in connection.data


async def test_half_an_event_that_has_gone_out_is_ended_before_the_error() -> None:
    writer, connection = await make_writer()
    writer.read_head(STREAM_HEAD)
    writer.start()
    writer.meter.torn = True
    writer.request.response.write(b'data: {"cho')
    assert writer.write_error(ApiError(502, "upstream_lost", "The node was lost."))
    assert b'data: {"cho\r\n' in connection.data
    assert b"\n\ndata: " in connection.data


async def test_a_request_that_can_t_be_continued_has_no_final_chunk() -> None:
    writer, _ = await make_writer(usage_requested=False)
    assert not writer.write_final_chunk()
