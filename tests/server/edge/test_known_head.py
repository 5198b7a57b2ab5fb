"""Heads that come again: what is not parsed anew is read as a parser without memory reads it."""

from __future__ import annotations

from typing import cast

from hypothesis import example, given
from hypothesis import strategies as st

from fabric_server.dialects.errors import ApiError
from fabric_server.edge.known_head import MAX_HEAD, find_head
from fabric_server.edge.parser import Limits, RequestParser
from fabric_server.edge.request import Connection, Request

LIMITS = Limits(
    body=1000, headers=8192, header_count=64, header_seconds=1, body_rate=1, keepalive_seconds=1
)


class Unanswered:
    """Stands for the connection of requests that nobody answers."""

    def send(self, data: bytes) -> None:
        raise AssertionError("nothing is answered here")


class Taken:
    """Takes the parser's requests, and tells what was read of each."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.parser = RequestParser(self, LIMITS)

    def new_request(self) -> Request:
        return Request(cast(Connection, Unanswered()), f"req_{len(self.requests)}", 0.0)

    def on_head_begun(self, request: Request) -> None: ...

    def on_request(self, request: Request) -> ApiError | None:
        self.requests.append(request)
        return None

    def on_body_complete(self, request: Request) -> None: ...

    def on_whole_request(self, request: Request) -> ApiError | None:
        return self.on_request(request)

    def feed(self, data: bytes, cuts: list[int]) -> ApiError | None:
        error = None
        for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
            error = self.parser.feed(data[start:stop])
        return error

    def read(self) -> list[object]:
        return [
            (
                one.method,
                one.path,
                one.query,
                one.version,
                {name: value for name, value in one.headers.items() if name != b"content-length"},
                one.keep_alive,
                one.expects,
                one.body.length,
                one.body.complete,
                one.body.take(),
            )
            for one in self.requests
        ]


def head(size: object, name: str = "content-length", more: str = "") -> bytes:
    return f"POST /v1/echo?a=1 HTTP/1.1\r\nHost: test\r\n{name}: {size}\r\n{more}\r\n".encode()


MORE = st.sampled_from(
    ["", "x-other: 1\r\n", "Connection: close\r\n", "expect: 100-continue\r\n", "x: \t5 \r\n",
     "upgrade: h2c\r\nconnection: upgrade\r\n", "x-content-length: 9\r\n"]
)  # fmt: skip
NAMES = st.sampled_from(["content-length", "Content-Length", "CONTENT-LENGTH"])
SIZES = st.one_of(
    st.integers(0, 1200), st.sampled_from(["007", "", "+5", " 5", "5 ", "5\t", "9" * 16, "1" * 15])
)


@st.composite
def spoilt(draw: st.DrawFn, data: bytes) -> bytes:
    """``data``, perhaps with a few bytes changed."""
    changed = bytearray(data)
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data)))
        changed[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(changed)


@st.composite
def followers(draw: st.DrawFn) -> tuple[bytes, bytes, list[int]]:
    """A request; what comes after it, mostly one like it; and where that is cut."""
    name, more = draw(NAMES), draw(MORE)
    size = draw(st.integers(0, 40))
    before = "" if "close" in more else more  # nothing comes after that
    first = head(size, name, before) + b"x" * size
    if draw(st.booleans()):
        first += b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
    length = draw(SIZES)
    body = b"y" * (length if isinstance(length, int) else draw(st.integers(0, 9)))
    second = draw(spoilt(head(length, name, more))) + body
    second += draw(st.sampled_from([b"", first, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", b"\r\n"]))
    cuts = draw(st.sets(st.integers(1, max(1, len(second) - 1)), max_size=4))
    return first, second, sorted(cut for cut in cuts if cut < len(second))


@given(followers())
@example((head(3) + b"abc", head(2) + b"de" + head(0), [10, 50]))
def test_what_comes_again_is_read_as_by_a_parser_without_memory(
    asked: tuple[bytes, bytes, list[int]],
) -> None:
    first, second, cuts = asked
    knowing, fresh = Taken(), Taken()
    assert knowing.feed(first, []) is None
    assert all(one.body.complete for one in knowing.requests)
    knowing.requests.clear()
    errors = knowing.feed(second, cuts), fresh.feed(second, cuts)
    said = [error and (error.code, error.message) for error in errors]
    assert said[0] == said[1]
    assert knowing.read() == fresh.read()


def test_a_head_that_comes_again_shares_what_was_read_of_it() -> None:
    taken = Taken()
    assert taken.feed(head(3) + b"abc" + head(12) + b"x" * 12, []) is None
    taken.feed(head(1), [7])
    taken.feed(b"z", [])
    first, second, third = taken.requests
    assert taken.feed(head(2) + b"de", []) is None
    assert second.head is None, "it was pipelined"
    assert third.head is None, "its head came in pieces"
    again = taken.requests[3]
    assert again.head is first.head is not None
    assert again.headers is first.headers
    assert (again.body.take(), again.body.complete) == (b"de", True)


def test_only_heads_with_a_length_and_of_moderate_size_are_remembered() -> None:
    assert find_head(head(3)) is not None
    assert find_head(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n") is None
    assert find_head(b"GET / HTTP/1.1\r\nx-content-length: 3\r\n\r\n") is None
    assert find_head(b"\r\n\r\n" + head(3)) is None
    assert find_head(head(3, more=f"x: {'y' * MAX_HEAD}\r\n")) is None
