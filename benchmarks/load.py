"""Load for one URL: streams as fast as they come, paced streams, or one request at a time.

    python -m benchmarks.load streams URL [--model mock-burst] [--concurrency 32] [--seconds 5]
    python -m benchmarks.load paced   URL [--model mock-crowd] [--concurrency 1000] [--seconds 60]
    python -m benchmarks.load probe   URL [--beside URL] [--stream] [--seconds 5]
    python -m benchmarks.load cold    URL URL… [--every 0.05] [--seconds 60]

The API key, if one is needed, is taken from FABRIC_KEY; for several URLs it has one for each, with
commas between.  Prints one line of JSON.  Every byte of a stream is compared with what the mock
engine must have sent: an event lost, changed or out of order makes its stream `wrong`.  Answers of
a URL that is also named by `--rewriting` are compared by what they say: its system writes them
anew.  `--seconds` of `paced` is the length of each stream and has to be that of the mock engine.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from random import Random
from typing import cast
from urllib.parse import urlsplit

import httptools
import uvloop

from benchmarks import canned
from benchmarks.processes import raise_file_limit

PATH = "/v1/chat/completions"
RAMP_SECONDS, RAMP_STREAMS = 1.0, 1000
"""Time over which paced streams begin, and how many begin in a second at most."""
GRACE_SECONDS = 15.0
"""Seconds that a stream may take beyond its time; a paced one counts as lost then."""
WARM_UP_SECONDS = 0.5
SMALL_ANSWERS = (canned.SMALL, canned.SHARED)
COLD_QUANTILES = (0.5, 0.9, 0.99)
BUCKET = 0.0001
BUCKETS = 50_000


class Histogram:
    """Counts durations in buckets of a tenth of a millisecond; what exceeds 5 s is 5 s."""

    def __init__(self) -> None:
        self.counts = [0] * BUCKETS
        self.total = 0

    def add(self, seconds: float, times: int = 1) -> None:
        self.counts[min(int(seconds / BUCKET), BUCKETS - 1)] += times
        self.total += times

    def quantile_ms(self, share: float) -> float | None:
        seen = 0
        for bucket, count in enumerate(self.counts):
            seen += count
            if count and seen >= share * self.total:
                return round((bucket + 1) * BUCKET * 1000, 1)
        return None


@dataclass
class Tally:
    """What came of all requests of a run."""

    requests: int = 0
    """Answered in full, and right."""
    events: int = 0
    """Events of these answers."""
    received: int = 0
    """Events so far, with those of answers under way and of wrong ones."""
    wrong: int = 0
    """Other bytes than expected."""
    refused: int = 0
    """Other status than 200."""
    lost: int = 0
    """Not answered in full."""
    comments: int = 0
    """Comments before answers: their systems have let them wait."""
    problem: str | None = None
    """The first one, for people."""
    gaps: Histogram = field(default_factory=Histogram)

    def note(self, kind: str, problem: object) -> None:
        setattr(self, kind, getattr(self, kind) + 1)
        self.problem = self.problem or f"{kind}: {problem!s:.200}"


def request_bytes(url: str, body: dict[str, object], key: str = "") -> bytes:
    payload = json.dumps(body, separators=(",", ":")).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n"
    if key:
        head += f"Authorization: Bearer {key}\r\n"
    return head.encode() + b"\r\n" + payload


def ask(model: str, stream: bool) -> dict[str, object]:
    messages = [{"role": "user", "content": "Say hello."}]
    return {"model": model, "messages": messages, "stream": stream}


class Reader(asyncio.Protocol):
    """Sends a request, compares the answer with what is expected, and calls `done`."""

    transport: asyncio.Transport

    def __init__(self, request: bytes, expected: Sequence[bytes], tally: Tally) -> None:
        """``expected``: what the answer's body may be."""
        self._request = request
        self._expected = self._possible = expected
        self._tally = tally
        self._parser = httptools.HttpResponseParser(self)
        self._position = 0
        self._events = 0
        self._last = 0.0
        self.first = 0.0
        """When the answer's first byte of body came, by time.perf_counter."""
        self._asked = False
        self.done: Callable[[], None] = lambda: None

    def ask(self) -> None:
        if self.transport.is_closing():
            return
        self._position = self._events = 0
        self._possible = self._expected
        self._asked = True
        self.transport.write(self._request)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)
        self._count_events()

    def _count_events(self) -> None:
        """Count what has come since the last call: at the end of a read, and of an answer."""
        events = self._events_received()
        if fresh := events - self._events:
            now = time.perf_counter()
            self._tally.received += fresh
            if self._events:
                self._tally.gaps.add(now - self._last)
                self._tally.gaps.add(0, fresh - 1)
            self._last, self._events = now, events

    def on_body(self, body: bytes) -> None:
        if not self._asked:
            return  # found wrong before: these come from the same read
        if not self._position and body.startswith(b":"):
            self._tally.comments += 1  # of a stream that waits; no part of an answer begins so
            return
        if not self._position:
            self.first = time.perf_counter()
        if not self._goes_on(body):
            if self._parser.get_status_code() == 200:
                self._tally.note("wrong", f"at byte {self._position}: {body!r}")
            else:
                self._tally.note("refused", f"{self._parser.get_status_code()} {body!r}")
            self._asked = False
            self.transport.abort()
        self._position += len(body)

    def on_message_complete(self) -> None:
        if not self._asked:
            return
        self._asked = False
        self._count_events()  # `done` may ask anew, which forgets this answer
        if fault := self._fault_of_whole():
            self._tally.note(fault, f"complete after {self._position} bytes")
        else:
            self._tally.requests += 1
            self._tally.events += self._events_received()
        self.done()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._asked:
            self._tally.note("lost", f"connection lost at byte {self._position}: {exc}")
            self._asked = False
        self.done()

    def _goes_on(self, body: bytes) -> bool:
        """Return whether an answer that is right may go on so."""
        at = self._position
        self._possible = [one for one in self._possible if one.startswith(body, at)]
        return bool(self._possible)

    def _fault_of_whole(self) -> str:
        """Return how an answer that has ended is to be counted; nothing when it is right."""
        return "" if any(self._position == len(one) for one in self._possible) else "lost"

    def _events_received(self) -> int:
        return self._position // canned.EVENT_BYTES


meaning_of_expected = cache(canned.meaning)


class RewritingReader(Reader):
    """Compares what an answer says: its system writes it anew, with other bytes."""

    def ask(self) -> None:
        self._body = bytearray()
        self._separators = 0
        super().ask()

    def _goes_on(self, body: bytes) -> bool:
        before = len(self._body)
        self._body += body
        self._separators += self._body.count(b"\n\n", max(0, before - 1))
        return self._parser.get_status_code() == 200

    def _fault_of_whole(self) -> str:
        meaning = canned.meaning(bytes(self._body))
        if meaning is None:
            return "lost"
        return "" if meaning in map(meaning_of_expected, self._expected) else "wrong"

    def _events_received(self) -> int:
        """Return how many events have come; those that end a stream do not count."""
        return min(self._separators, len(self._expected[0]) // canned.EVENT_BYTES)


@dataclass(frozen=True)
class Place:
    """A URL, and what the load must know of the system there."""

    url: str
    key: str = ""
    rewrites: bool = False

    async def connect(
        self, tally: Tally, body: dict[str, object], expected: Sequence[bytes]
    ) -> Reader:
        address = urlsplit(self.url)
        assert address.hostname
        assert address.port
        kind = RewritingReader if self.rewrites else Reader
        request = request_bytes(self.url, body, self.key)
        _, reader = await asyncio.get_running_loop().create_connection(
            lambda: kind(request, expected, tally), address.hostname, address.port
        )
        return reader


async def streams(place: Place, model: str, concurrency: int, seconds: float) -> dict[str, object]:
    """Unpaced streams, the next on each connection as soon as the last has ended."""
    tally = Tally()
    expected = [canned.body(canned.FAST_EVENTS)]
    readers = [
        await place.connect(tally, ask(model, stream=True), expected) for _ in range(concurrency)
    ]
    for reader in readers:
        reader.done = reader.ask
        reader.ask()
    await asyncio.sleep(WARM_UP_SECONDS)
    before, began = tally.received, time.perf_counter()
    await asyncio.sleep(seconds)
    rate = (tally.received - before) / (time.perf_counter() - began)
    first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    for reader in readers:
        reader.done = partial(settle, first)
    if not tally.requests:  # a rate counts only if a whole answer was right
        await asyncio.wait([first], timeout=GRACE_SECONDS)
    return {"events_per_second": round(rate), **report(tally)}


async def paced(place: Place, model: str, concurrency: int, seconds: float) -> dict[str, object]:
    """Paced streams, one on each connection, begun evenly over a second or more."""
    tally = Tally()
    expected = [canned.body(round(seconds / canned.PACES[model]))]
    ramp = max(RAMP_SECONDS, concurrency / RAMP_STREAMS)
    loop = asyncio.get_running_loop()
    ended: list[asyncio.Future[None]] = [loop.create_future() for _ in range(concurrency)]
    began = time.perf_counter()
    for number, end in enumerate(ended):
        reader = await place.connect(tally, ask(model, stream=True), expected)
        reader.done = partial(settle, end)
        reader.ask()
        ahead = began + (number + 1) / concurrency * ramp - time.perf_counter()
        await asyncio.sleep(max(0, ahead))
    _, late = await asyncio.wait(ended, timeout=seconds + GRACE_SECONDS)
    for _ in late:
        tally.note("lost", "still running")
    rate = tally.events / (time.perf_counter() - began)
    return {
        "streams": concurrency,
        "events_per_second": round(rate),
        "gap_p50_ms": tally.gaps.quantile_ms(0.50),
        "gap_p99_ms": tally.gaps.quantile_ms(0.99),
        "gap_max_ms": tally.gaps.quantile_ms(1),
        **report(tally),
    }


def settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def probe(places: list[Place], stream: bool, seconds: float) -> dict[str, object]:
    """One request after the other, to each place in turn: what the first takes, and what it adds.

    Asked in turn, both meet the machine in the same mood: how soon an idle core wakes up differs
    from second to second by more than is measured here.
    """
    tally = Tally()
    expected = [canned.body(canned.FAST_EVENTS)] if stream else SMALL_ANSWERS
    readers = [await place.connect(tally, ask(canned.MODEL, stream), expected) for place in places]
    turns = itertools.cycle(readers)
    firsts: dict[Reader, list[float]] = {reader: [] for reader in readers}
    wholes: dict[Reader, list[float]] = {reader: [] for reader in readers}
    finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    began = time.perf_counter()

    def ask_next(reader: Reader) -> None:
        asked = time.perf_counter()
        reader.done = lambda: on_done(reader, asked)
        reader.ask()

    def on_done(reader: Reader, asked: float) -> None:
        now = time.perf_counter()
        firsts[reader].append(reader.first - asked)
        wholes[reader].append(now - asked)
        if now - began < seconds and not reader.transport.is_closing():
            ask_next(next(turns))
        else:
            settle(finished)

    ask_next(next(turns))
    await finished
    if not all(wholes.values()):
        raise SystemExit(f"nothing to tell: {tally.problem or 'no answer in time'}")
    told: dict[str, object] = {}
    for name, times in (("first_byte", firsts), ("whole", wholes)):
        here, *beside = (quantile_ms(times[reader], 0.5) for reader in readers)
        told[f"{name}_p50_ms"] = here
        told[f"{name}_p99_ms"] = quantile_ms(times[readers[0]], 0.99)
        if beside:
            told[f"{name}_added_ms"] = round(here - beside[0], 3)
    return {**told, **report(tally)}


async def cold(places: list[Place], every: float, seconds: float) -> list[dict[str, object]]:
    """One request each ``every`` seconds, to the places in turn: what each place's answers take.

    Each round has an order of its own, so that no place always follows the same one.  A request
    waits for the end of the one before, however late that is.
    """
    tallies = [Tally() for _ in places]
    times: list[list[float]] = [[] for _ in places]
    readers = [
        await place.connect(tally, ask(canned.MODEL, stream=False), SMALL_ANSWERS)
        for place, tally in zip(places, tallies, strict=True)
    ]
    turns, order = list(range(len(places))), Random(1)
    due = time.perf_counter()
    for _ in range(max(1, round(seconds / every / len(places)))):
        order.shuffle(turns)
        for turn in turns:
            due += every
            await asyncio.sleep(max(0, due - time.perf_counter()))
            if readers[turn].transport.is_closing():
                tallies[turn].note("lost", "the connection was closed between two requests")
            else:
                times[turn].append(await one_answer(readers[turn]))
    return [
        {
            **{f"p{round(share * 100)}_ms": quantile_ms(own, share) for share in COLD_QUANTILES},
            **report(tally),
        }
        for own, tally in zip(times, tallies, strict=True)
    ]


async def one_answer(reader: Reader) -> float:
    """Seconds until an answer's last byte."""
    ended: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def on_done() -> None:
        if not ended.done():
            ended.set_result(time.perf_counter())

    reader.done = on_done
    asked = time.perf_counter()
    reader.ask()
    return await ended - asked


def quantile_ms(times: list[float], share: float) -> float:
    """Milliseconds, without the first tenth: what is made at a first request is in it."""
    warm = sorted(times[len(times) // 10 :])
    return round(warm[int(len(warm) * share)] * 1000, 3)


def report(tally: Tally) -> dict[str, object]:
    told = {name: value for name, value in vars(tally).items() if name != "gaps"}
    return {**told, "load_cpu_seconds": round(time.process_time(), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Load for one URL.")
    parser.add_argument("kind", choices=["streams", "paced", "probe", "cold"])
    parser.add_argument("urls", nargs="+", metavar="URL", help="several for cold")
    parser.add_argument(
        "--beside", metavar="URL", help="probe this in turn, and tell the difference"
    )
    parser.add_argument("--rewriting", metavar="URL", action="append", default=[])
    parser.add_argument("--model", default=canned.MODEL, help="of streams and paced ones")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--every", type=float, default=0.05, help="seconds from request to request")
    parser.add_argument("--stream", action="store_true", help="probe with streamed answers")
    given = parser.parse_args()
    raise_file_limit()
    keys = os.environ.get("FABRIC_KEY", "").split(",")
    places = [
        Place(url, key, url in given.rewriting)
        for url, key in itertools.zip_longest(given.urls, keys[: len(given.urls)], fillvalue="")
    ]
    run: Coroutine[None, None, object]
    match given.kind:
        case "streams":
            run = streams(places[0], given.model, given.concurrency, given.seconds)
        case "paced":
            model = given.model if given.model in canned.PACES else canned.PACED_MODEL
            run = paced(places[0], model, given.concurrency, given.seconds)
        case "cold":
            run = cold(places, given.every, given.seconds)
        case _:
            beside = [Place(given.beside)] if given.beside else []
            run = probe([*places, *beside], given.stream, given.seconds)
    print(json.dumps(uvloop.run(run)))


if __name__ == "__main__":
    main()
