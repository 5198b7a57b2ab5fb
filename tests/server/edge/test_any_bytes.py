"""The public port: any bytes in any pieces give the same answers, and no exception."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from fabric_server.edge.request import Request
from tests.server.edge.port import GET, Port
from tests.users import Answer, Incomplete, parse_answer, request

# ── any bytes, in any pieces ──────────────────────────────────────────────────────────────────

REQUESTS = st.sampled_from(
    [
        GET,
        request("POST", "/echo", b'{"a":1}'),
        request("POST", "/early", b"x" * 50),
        request("GET", "/stream"),
        request("HEAD", "/"),
        request("OPTIONS", "/", origin="https://a.test"),
        request("POST", "/echo", transfer_encoding="chunked") + b"3\r\nabc\r\n0\r\n\r\n",
        request("POST", "/echo", b"abc", expect="100-continue"),
        request("GET", "/nothing", connection="close"),
        request("GET", "/broken"),
        b"GET / HTTP/1.0\r\n\r\n",
        b"\r\n\r\n",
        b"POST /echo HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
    ]
)


@st.composite
def conversations(draw: st.DrawFn) -> bytes:
    """Requests, some with a few bytes changed."""
    data = bytearray(b"".join(draw(st.lists(REQUESTS, min_size=1, max_size=6))))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data) - 1))
        data[at : at + draw(st.integers(0, 5))] = draw(st.binary(max_size=5))
        data = data or bytearray(b"\r\n")
    return bytes(data)


async def _answers(data: bytes, cuts: list[int]) -> list[Answer]:
    heard: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, said: heard.append(said))
    port = Port()
    user = port.user()
    for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
        if user.closed:
            break
        user.send(data[start:stop])
        for _ in range(30):
            await asyncio.sleep(0)
    for _ in range(100):
        await asyncio.sleep(0)
    for seconds in (11, 61, 100):
        port.wait(seconds)
        for _ in range(10):
            await asyncio.sleep(0)
    port.wait(1000)
    await asyncio.sleep(0)
    assert user.closed, "a connection was left behind"
    assert port.edge.connections == 0
    assert not heard
    return _parsed(bytes(user.received), port.asked)


def _parsed(data: bytes, asked: list[Request]) -> list[Answer]:
    methods = {one.id: one.method for one in asked}
    answers: list[Answer] = []
    while data:
        found = re.search(rb"x-request-id: (\S+)", data)
        assert found is not None
        method = methods.get(found[1].decode(), "")
        try:
            answer, length = parse_answer(data, method=method, at_end=True)
        except (Incomplete, json.JSONDecodeError):
            assert not method  # a HEAD that was refused before it was handled
            answer, length = parse_answer(data, method="HEAD", at_end=True)
        if answer.status >= 400 and answer.body:
            assert answer.code
        answers.append(answer)
        data = data[length:]
    return answers


@settings(max_examples=150, deadline=None)
@given(conversations(), st.data())
@example(GET * 3, None)
async def test_any_bytes_in_any_pieces_give_the_same_answers_and_no_exception(
    data: bytes, pieces: st.DataObject | None
) -> None:
    cuts = (
        list(range(1, len(data)))
        if pieces is None
        else sorted(pieces.draw(st.sets(st.integers(1, max(1, len(data) - 1)), max_size=8)))
    )
    whole = await _answers(data, [])
    cut = await _answers(data, [at for at in cuts if at < len(data)])
    for one, other in zip(cut, whole, strict=False):
        if (one.status, one.body) != (other.status, other.body):
            # What is refused before its body is complete, and that this body can't be read:
            # the user hears of what comes first, and the connection is closed in any case.
            assert min(one.status, other.status) >= 400
            return
    if len(cut) != len(whole):
        assert len(cut) < len(whole)
        # So it is, too, where a request was answered before its body was complete.
        assert cut[-1].status >= 400 or cut[-1].headers["connection"] == "close"


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=300), max_size=6))
async def test_noise_is_never_an_exception(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    if data:
        await _answers(data, [])
