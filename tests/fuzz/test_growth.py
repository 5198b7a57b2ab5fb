"""The work of every reader of foreign bytes grows no faster than what it is sent.

Each reader gets hostile shapes of n and of 4n bytes.  What it does is counted in calls.  Copies and
searches within one call can't be counted in Python: for those the processor's time is compared,
with a bound that only growth by the square exceeds.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import ipaddress
import json
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from random import Random

import pytest
from aiohttp.test_utils import make_mocked_request

from fabric_client.offer.private_text import PrivateText
from fabric_client.proxy.decoder import Decoder
from fabric_client.reasoning.response_filter import ReasoningFilter
from fabric_client.sse import EventFramer, EventTooLong, decode_events, split_events
from fabric_client.translation import LocalReply, ResponseFilter, TranslationError
from fabric_client.translation.engine_errors import read_error
from fabric_server.acme.http_port import asked_token
from fabric_server.admin.parameters import read_query
from fabric_server.admin.reports import RequestQuery
from fabric_server.dialects.body import parse_body
from fabric_server.dialects.endpoints import ENDPOINTS
from fabric_server.dialects.errors import ApiError, bad_request
from fabric_server.dialects.forms import read_form
from fabric_server.dialects.large_body import LargeBody
from fabric_server.dialects.media_scanner import MediaScanner
from fabric_server.dialects.media_values import Policy
from fabric_server.jobs.chat_objects import OtherId, read_asked, read_fields, stored_chat
from fabric_server.jobs.collected_chat import CollectedChat
from fabric_server.jobs.multipart import Multipart, MultipartError
from fabric_server.metering.answer_ids import ChatIdMeter
from fabric_server.metering.error_events import read_error_event
from fabric_server.metering.estimate import (
    media_tokens,
    prompt_tokens,
    streamed_tokens,
    whole_tokens,
)
from fabric_server.metering.naming import NamingMeter
from fabric_server.metering.openai import BodyMeter, StreamMeter
from fabric_server.net.egress import Forbidden, parse_target
from fabric_server.net.trusted_proxies import TrustedProxies
from fabric_server.pki.ca import BadRequest, read_request
from fabric_server.proxy.continuation import Continuation
from fabric_server.proxy.transcript import NotContinued
from fabric_server.storage.spool.frames import scan
from protocol import join, messages
from protocol.control.link import Link
from protocol.tunnel.base import Role
from runtime.form_headers import FormError, read_disposition
from runtime.private_places import MAX_TEXT, hide_places
from tests.fuzz import node_readers, server_readers
from tests.pump import SESSION, SIDES
from tests.server.edge.port import Port

Pieces = list[bytes]
Read = Callable[[Pieces], object]
PIECE = 64
SMALL_PIECE = 16
COUNTED = 8 * 1024
"""Bytes of the smaller input whose work is counted."""
TIMED = 192 * 1024
"""Bytes of the smaller input whose work is timed."""
REFUSED = (
    *(ApiError, MultipartError, TranslationError, EventTooLong, Forbidden, BadRequest),
    *(NotContinued, join.BadToken, ValueError, RecursionError),
)


def whole(read: Callable[[bytes], object]) -> Read:
    """Return a reader of something that is there at once."""
    return lambda pieces: read(b"".join(pieces))


def fed(make: Callable[[], object], *, end: bool = True) -> Read:
    """Return a reader that takes its input piece by piece."""

    def read(pieces: Pieces) -> None:
        reader = make()
        for piece in pieces:
            reader.feed(piece)  # type: ignore[attr-defined]
        if end:
            reader.end()  # type: ignore[attr-defined]

    return read


def flowing(pieces: Pieces) -> None:
    body = LargeBody(ENDPOINTS["/v1/chat/completions"])
    for piece in pieces:
        body.feed(piece)
        if body.can_flow and not body.flows:
            body.begin_flow(announced=False)
        if body.flows:
            body.take()
    body.end()


def edge(pieces: Pieces) -> None:
    async def serve() -> None:
        port = Port()
        user = port.user()
        for piece in pieces:
            if user.closed:
                break
            user.send(piece)
            await asyncio.sleep(0)
        port.edge.close()
        for _ in range(10):
            await asyncio.sleep(0)

    asyncio.run(serve())


def tunnel(role: Role) -> Read:
    def read(pieces: Pieces) -> None:
        connection = SIDES[role](now=0.0, rng=Random(1))
        if role is Role.NODE:
            connection.hello(SESSION)
        for piece in pieces:
            connection.receive(piece, 1.0)
            connection.events()

    return read


def link(pieces: Pieces) -> None:
    one = Link(now=0.0, rng=Random(1))
    for number, piece in enumerate(pieces):
        one.receive(piece, float(number))
        one.events()


def answer(make: Callable[[], ResponseFilter], kind: str) -> Read:
    def read(pieces: Pieces) -> None:
        response = make()
        response.head(200, [("content-type", kind)])
        for piece in pieces:
            response.feed(piece)
        response.end()

    return read


def translated(path: str, question: dict[str, object]) -> ResponseFilter:
    [translate] = [made for name, made in node_readers.HANDLERS[:10] if name == path]
    done = translate(json.dumps(question).encode())
    assert not isinstance(done, LocalReply)
    assert done.response_filter is not None
    return done.response_filter


def continued(pieces: Pieces) -> None:
    question = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    continuation = Continuation(json.dumps(question).encode())
    meter = continuation.meter(server_readers.METERS[0](), "vllm", splice=False)
    for piece in pieces:
        meter.feed(piece)
    assert continuation.possible in (True, False)


def collected(pieces: Pieces) -> None:
    meter, chat = ChatIdMeter(StreamMeter(True), "chatcmpl-1", whole=False), CollectedChat()
    for piece in pieces:
        chat.add(meter.feed(piece))
    chat.add(meter.end())
    chat.completion()


def stored(pieces: Pieces) -> None:
    meter = ChatIdMeter(BodyMeter(), "chatcmpl-1", whole=True)
    passed = b"".join(map(meter.feed, pieces)) + meter.end()
    with suppress(OtherId):
        stored_chat(read_fields(passed), {}, "chatcmpl-1")


def inflate(data: bytes) -> None:
    decoder = Decoder("gzip")
    packed = gzip.compress(data, mtime=0)
    for at in range(0, len(packed), PIECE):
        decoder.feed(packed[at : at + PIECE])
    decoder.end()


def text(read: Callable[[str], object]) -> Read:
    return whole(lambda data: read(data.decode("utf-8", "replace")))


def query(data: bytes) -> None:
    safe = data.decode("latin-1").encode("ascii", "ignore").decode().replace(" ", "+")
    printable = "".join(character for character in safe if character.isprintable())
    read_query(make_mocked_request("GET", f"/?{printable}"), RequestQuery)


def refused(read: Callable[[str], object], header: str) -> None:
    with suppress(FormError):
        read(header)


FORM = b"multipart/form-data; boundary=xx"
NAMES = frozenset({"model", "stream"})
PROXIES = TrustedProxies(["10.0.0.0/8"])
PEER = ipaddress.ip_address("10.0.0.1")
MESSAGES = [{"role": "user", "content": "Hi"}]
QUESTIONS = {
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 9},
    "/v1/responses": {"input": "Hi"},
    "/api/chat": {"messages": MESSAGES},
    "/api/generate": {"prompt": "Hi"},
}
PATHS = ("/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/api/chat")

READERS: dict[str, Read] = {
    "edge": edge,
    "tunnel of a server": tunnel(Role.SERVER),
    "tunnel of a node": tunnel(Role.NODE),
    "link": link,
    **{f"body of {path}": whole(partial(parse_body, endpoint=ENDPOINTS[path])) for path in PATHS},
    **{f"large body of {path}": fed(partial(LargeBody, ENDPOINTS[path])) for path in PATHS},
    "large body that flows": flowing,
    "media": fed(lambda: MediaScanner(Policy()), end=False),
    "form": whole(lambda data: read_form(data, FORM, NAMES)),
    "upload": fed(lambda: Multipart(b"xx"), end=False),
    **{f"meter {number}": fed(make) for number, make in enumerate(server_readers.METERS)},
    "named answer": fed(lambda: NamingMeter(BodyMeter(), "tiny", "fast")),
    "engine's error": whole(lambda data: read_error(500, data)),
    "places in an error": text(hide_places),
    "private text of an error": whole(PrivateText({"/home/x": "x"}, {"y"}, "key").hide_in),
    "error event": whole(read_error_event),
    "part of a form": text(lambda said: refused(read_disposition, said)),
    "continuation": continued,
    "collected chat": collected,
    "stored chat": stored,
    "request of a stored chat": whole(read_asked),
    "batch line": whole(server_readers.batch_lines),
    "estimated prompt": whole(prompt_tokens),
    "estimated prompt with media": whole(lambda data: media_tokens(data + b";base64,")),
    "estimated stream": whole(lambda data: streamed_tokens(len(data), 1, data)),
    "estimated answer": whole(lambda data: whole_tokens(len(data), data)),
    "query": whole(query),
    "error": text(lambda said: bad_request(said).body()),
    "url": text(partial(parse_target, allow_http=True)),
    "client hello": whole(server_readers.client_hellos),
    "request of a CA": whole(asked_token),
    "forwarded for": whole(lambda data: PROXIES.client(PEER, data)),
    "certificate request": text(read_request),
    "spool": whole(scan),
    "control message": whole(messages.decoder(messages.Message).decode),
    "join token": text(join.parse),
    **{f"request to {path}": whole(translate) for path, translate in node_readers.HANDLERS[:10]},
    **{
        f"answer to {path}, {kind}, {stream}": answer(
            partial(translated, path, {"model": "m", "stream": stream, **question}), kind
        )
        for path, question in QUESTIONS.items()
        for kind in ("text/event-stream", "application/json")
        for stream in (True, False)
    },
    **{
        f"reasoning, {kind}, {stream}": answer(partial(ReasoningFilter, stream), kind)
        for kind in ("text/event-stream", "application/json", "text/plain")
        for stream in (True, False)
    },
    "events": fed(EventFramer),
    "split events": whole(lambda data: list(split_events(data))),
    "decoded events": whole(decode_events),
    "compressed": whole(inflate),
}

CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n'
SHAPES: dict[str, tuple[bytes, bytes, bytes]] = {
    # What it begins with, what is repeated, and what it ends with.  A # is replaced by a number.
    "zeros": (b"", b"\0", b""),
    "spaces": (b"", b" ", b""),
    "high bytes": (b"", b"\xff", b""),
    "quotes": (b'{"x":["', b'","', b'"],"model":"a"}'),
    "backslashes": (b'{"model":"a","x":"', b"\\\\", b'"}'),
    "surrogates": (b'{"model":"a","x":"', b"\\ud83d", b'"}'),
    "brackets": (b'{"model":"a","x":', b"[", b""),
    "objects": (b'{"model":"a","messages":[', b'{"a":', b""),
    "members": (b'{"model":"a",', b'"x":1,', b'"y":1}'),
    "options": (
        b'{"model":"a","stream":true,"stream_options":{"a":1},"x":[',
        b'{"stream_options":{"a":1}},',
        b"1]}",
    ),
    "models": (b'{"x":[', b'{"Model":"b","model":"a"},', b'1],"model":"a"}'),
    "messages": (b'{"model":"a","messages":[', b'{"role":"user","content":"x"},', b"1]}"),
    "parts of a form": (
        b"",
        b'--xx\r\ncontent-disposition: form-data; name="a"\r\n\r\nb\r\n',
        b"--xx--\r\n",
    ),
    "almost a boundary": (b"--xx\r\n\r\n", b"\r\n--x", b""),
    "lines": (b"", b"\n", b""),
    "pairs of CR and LF": (b"", b"\r\n", b""),
    "lines of data": (b"", b"data: x\n", b"\n"),
    "text": (b"", CHUNK % b"a", b"data: [DONE]\n\n"),
    "markers of thoughts": (b"", CHUNK % b"<think></think>", b"data: [DONE]\n\n"),
    "half markers": (b"", CHUNK % b"</thin", b"data: [DONE]\n\n"),
    "an endless event": (b"data: ", b'{"usage":{', b""),
    "usage in each event": (b"", b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n', b""),
    "pieces of a call": (
        b"",
        b'data: {"choices":[{"delta":{"tool_calls":[{"function":{"arguments":"{"}}]}}]}\n\n',
        b"data: [DONE]\n\n",
    ),
    "calls": (
        b"",
        b'data: {"choices":[{"delta":{"tool_calls":[{"id":"a","function":{"name":"f"}}]}}]}\n\n',
        b"data: [DONE]\n\n",
    ),
    "calls of one event": (
        b'data: {"choices":[{"delta":{"tool_calls":[',
        b'{"index":#},',
        b'{"index":0}]}}]}\n\n',
    ),
    "numbered calls": (
        b"",
        b'data: {"choices":[{"delta":{"tool_calls":[{"index":#,"id":"#"}]}}]}\n\n',
        b"data: [DONE]\n\n",
    ),
    "choices of one event": (b'data: {"choices":[', b'{"index":#},', b'{"index":0}]}\n\n'),
    "names of a call": (
        b"",
        b'data: {"choices":[{"delta":{"tool_calls":[{"function":{"name":"#"}}]}}]}\n\n',
        b"data: [DONE]\n\n",
    ),
    "lines of JSON": (b"", b'{"message":{"content":"a"},"done":false}\n', b'{"done":true}\n'),
    "headers": (b"GET / HTTP/1.1\r\nhost: a\r\n", b"a: b\r\n", b"\r\n"),
    "requests": (b"", b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", b""),
    "chunks": (
        b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n",
        b"1\r\nx\r\n",
        b"0\r\n\r\n",
    ),
    "fields of a query": (b"", b"limit=1&", b""),
    "hops": (b"", b"10.0.0.2, ", b"1.2.3.4"),
    "dots": (b"https://", b"a.", b"/"),
    "places": (b'{"error":{"message":"[', b"1:", b'"}}'),
    "PEM": (b"-----BEGIN CERTIFICATE REQUEST-----\n", b"AAAA\n", b"-----END"),
}


HELD = (
    *("zeros", "spaces", "quotes", "backslashes", "brackets", "members", "almost a boundary"),
    *("lines of data", "an endless event", "text", "headers", "places", "calls of one event"),
)
"""Shapes that are held until an end comes, and that a bad reader looks at with each piece."""


def cut(shape: str, size: int, piece: int = PIECE) -> Pieces:
    first, part, last = SHAPES[shape]
    parts = (part.replace(b"#", b"%d" % number) for number in range(size // len(part)))
    data = first + b"".join(parts) + last
    return [data[at : at + piece] for at in range(0, len(data), piece)]


def calls(read: Read, pieces: Pieces) -> int:
    count = 0

    def on_event(frame: object, event: str, arg: object) -> None:
        nonlocal count
        count += 1

    sys.setprofile(on_event)
    try:
        with contextlib.suppress(*REFUSED):
            read(pieces)
    finally:
        sys.setprofile(None)
    return count


def seconds(read: Read, pieces: Pieces) -> float:
    start = time.process_time()
    with contextlib.suppress(*REFUSED):
        read(pieces)
    return time.process_time() - start


def faster_than_input(
    found: Iterable[tuple[str, float, float]], most: float, rest: float
) -> list[tuple[str, float, float]]:
    return [(name, small, large) for name, small, large in found if large > most * small + rest]


@pytest.mark.parametrize("reader", READERS)
def test_the_calls_of_a_reader_grow_with_its_input(reader: str) -> None:
    read = READERS[reader]
    read_once = partial(calls, read)
    read_once(cut("text", 1000))  # what is loaded or made at the first call only
    found = [
        (shape, read_once(cut(shape, COUNTED)), read_once(cut(shape, 4 * COUNTED)))
        for shape in SHAPES
    ]
    assert not faster_than_input(found, 5, 2000)


@pytest.mark.parametrize("reader", READERS)
def test_the_time_of_a_reader_grows_with_its_input(reader: str) -> None:
    read = READERS[reader]
    for shape in HELD:
        small, large = (cut(shape, size, SMALL_PIECE) for size in (TIMED, 4 * TIMED))
        for attempt in range(4):
            found = (shape, seconds(read, small), seconds(read, large))
            if not faster_than_input([found], 8, 0.02):
                break
            assert attempt < 3, found


PLACES = (
    *("1:", "1", ":", "::", "[", "[1:", "1.", "1.1.1.1:1", "a.", "a-", "a:", "a://", "f:", "%"),
    *("/a", "/", ":/", "\\\\", "C:\\", "C:\\ a ", "~", "~a/", "./", "file:", "/home/"),
    *("/home/a b ", "a b ", "a/b ", "home/", "/v1", "localhost:1"),
)
"""What is repeated after each of ``BEGINNINGS``, as a hostile engine's message."""
BEGINNINGS = ("", "[", "[1:", "/home/", "C:\\", "~", "1:2")


@pytest.mark.parametrize("part", PLACES)
def test_places_are_looked_for_in_time_that_grows_with_the_text(part: str) -> None:
    def look(text: str) -> float:
        start = time.process_time()
        for _ in range(4):
            hide_places(text)
        return time.process_time() - start

    for begin in BEGINNINGS:
        text = begin + part * (MAX_TEXT // len(part))
        for attempt in range(4):
            small, large = look(text[: MAX_TEXT // 8]), look(text[:MAX_TEXT])
            if large < 16 * small + 0.004:
                break
            assert attempt < 3, (begin, part, small, large)


def test_growth_by_the_square_is_noticed() -> None:
    class Again:
        """Copies all that has come, with each piece."""

        def __init__(self) -> None:
            self.held = bytearray()

        def feed(self, data: bytes) -> None:
            self.held += data
            bytes(self.held)

    def nested(data: bytes) -> None:
        for at in range(0, len(data), PIECE):
            for _ in range(0, at, PIECE):
                len(data)

    small, large = (cut("text", size, SMALL_PIECE) for size in (TIMED, 4 * TIMED))
    again = fed(Again, end=False)
    times = [min(seconds(again, pieces) for _ in range(3)) for pieces in (small, large)]
    assert faster_than_input([("text", *times)], 8, 0.02)
    counts = [calls(whole(nested), cut("text", size)) for size in (COUNTED, 4 * COUNTED)]
    assert faster_than_input([("text", *counts)], 5, 2000)
