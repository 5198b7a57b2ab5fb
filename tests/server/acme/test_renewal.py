"""When a certificate is ordered, what is kept of failures, and who orders.

The CA is Pebble. Only what it can't do is scripted: refuse for its rate limits, answer nonsense.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import stat
import threading
import time
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from random import Random
from typing import Any

import pytest
from cryptography import x509

from fabric_server.acme.failure import pause_after
from fabric_server.acme.renewal import AcmeOptions, AcmeRenewal
from fabric_server.acme.state import AcmeFiles, State, renewal_time, why_due
from fabric_server.pki.ca import DAY, Authority, key_pem, to_pem
from fabric_server.storage.acme import ChallengeStore
from fabric_server.storage.connect import open_store
from runtime.background import BackgroundTasks
from tests.lab.backends import free_port
from tests.lab.pebble import Pebble
from tests.trust import new_key

NAME = "gpu.fabric-test.org"
HOUR = 3600.0


@contextlib.asynccontextmanager
async def renewing(
    directory: Path, url: str, ca: Pebble | None = None, store: str = "", **options: Any
) -> AsyncIterator[AcmeRenewal]:
    """Give the task of a server, which runs nothing by itself but the answers."""
    opened = await open_store(store or f"sqlite:///{directory / 'store.db'}")
    given: dict[str, Any] = {
        "data": directory,
        "names": (NAME,),
        "url": url,
        "kind": "http-01",
        "ca": None if ca is None else ca.trust,
        "http_hosts": ("127.0.0.1",),
        "http_port": 0 if ca is None else ca.http_port,
    }
    issued: list[None] = []
    renewal = AcmeRenewal(
        AcmeOptions(**given | options),
        ChallengeStore(opened.database),
        lambda: issued.append(None),
        Random(1),
    )
    answering = asyncio.create_task(renewal.give_answers())
    try:
        yield renewal
    finally:
        answering.cancel()
        renewal.http.stop()
        await asyncio.gather(answering, return_exceptions=True)
        await opened.close()


def at(seconds: float) -> Callable[[], float]:
    """Return a clock that is ahead."""
    return lambda: time.time() + seconds


def later(renewal: AcmeRenewal, seconds: float) -> None:
    renewal.options = replace(renewal.options, clock=at(seconds))


def ending(renewal: AcmeRenewal) -> x509.Certificate:
    """Put a certificate in place that was issued 70 days ago, for 90."""
    key, then = new_key(), time.time() - 70 * DAY
    certificate = Authority.make(then).sign_server(key.public_key(), [NAME], then, 90 * DAY)
    renewal.files.save_certificate(key_pem(key) + to_pem(certificate))
    renewal.files.save(State(ca=renewal.options.url))
    return certificate


# ── when ──────────────────────────────────────────────────────────────────────────────────────


def a_certificate(now: float, days: float, *names: str) -> x509.Certificate:
    key = new_key().public_key()
    return Authority.make(now).sign_server(key, names or [NAME], now, days * DAY)


def test_a_certificate_is_renewed_when_a_third_of_its_life_is_left_or_a_little_earlier() -> None:
    now = time.time()
    made = [a_certificate(now, 89) for _ in range(20)]  # and a day, by which it is backdated
    times = [renewal_time(one) - now for one in made]
    assert all(54 * DAY < one <= 59.01 * DAY for one in times)
    assert len(set(times)) == 20, "each at another time"
    assert [renewal_time(one) - now for one in made] == times, "which a restart does not change"


def test_what_makes_an_order_due() -> None:
    now, ca = time.time(), "https://ca.example.org/dir"
    good, state = a_certificate(now, 90), State(ca=ca)
    assert why_due(good, state, ca, (NAME,), now) is None
    assert why_due(good, state, ca, (NAME,), now + 31 * DAY) is None
    assert why_due(good, state, ca, (NAME,), now + 61 * DAY) == "it ends"
    assert why_due(good, state, ca, (NAME,), now + 300 * DAY) == "it ends"
    assert why_due(None, state, ca, (NAME,), now) == "there is none"
    assert why_due(good, state, ca, (NAME, "b.org"), now) == "the names are others"
    assert why_due(good, state, "https://other.org", (NAME,), now) == "it is another CA's"


def test_pauses_grow_and_leave_room_in_the_limits_of_a_ca() -> None:
    def pauses(code: str) -> list[float]:
        return [pause_after(failures, code, Random(2)) for failures in range(1, 40)]

    checks = pauses("check")
    at_once = [sum(checks[:tries]) for tries in range(20)]
    assert sum(moment < HOUR for moment in at_once) <= 5  # Let's Encrypt's, for a name and hour
    assert checks[0] >= 300
    assert 6 * HOUR <= checks[-1] <= 7.5 * HOUR
    assert pauses("unreachable")[0] < 100
    assert max(pauses("unreachable")) < 1200
    assert min(pauses("rate_limited")) >= HOUR


# ── with a real CA ────────────────────────────────────────────────────────────────────────────


async def test_a_certificate_is_issued_kept_and_renewed(tmp_path: Path, pebble: Pebble) -> None:
    async with renewing(tmp_path, pebble.directory_url, pebble, email="op@fabric.org") as renewal:
        await renewal.check()
        assert (renewal.problem, renewal.orders) == (None, {"issued": 1, "failed": 0})
        first = renewal.files.issued()
        assert first is not None
        await renewal.check()
        later(renewal, 50 * DAY)
        await renewal.check()
        assert renewal.files.issued() == first
        later(renewal, 0)
        old = ending(renewal)
        await renewal.check()
        second = renewal.files.issued()
        assert second is not None
        assert second not in (old, first)
        assert renewal.orders == {"issued": 2, "failed": 0}
        assert not renewal.http.open, "the port is open only while it is needed"
    files = AcmeFiles(tmp_path)
    assert stat.S_IMODE(os.stat(files.directory).st_mode) == 0o700
    names = sorted(path.name for path in files.directory.iterdir())
    assert names == [f"account-127.0.0.1_{pebble.port}.key", "certificate.pem", "state.json"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files.directory.iterdir()} == {0o600}


async def test_a_clock_that_is_ahead_does_not_use_up_the_limits(
    tmp_path: Path, pebble: Pebble
) -> None:
    async with renewing(tmp_path, pebble.directory_url, pebble, clock=at(80 * DAY)) as renewal:
        await renewal.check()
        assert renewal.problem is not None
        assert "clock" in renewal.problem.remedy
        await renewal.check()
        assert renewal.orders == {"issued": 1, "failed": 1}
        assert renewal.files.state().next_try - renewal.options.clock() > 200


async def test_a_certificate_is_issued_by_a_ca_that_refuses_good_nonces(tmp_path: Path) -> None:
    with Pebble(tmp_path, bad_nonces=25) as ca:
        async with renewing(tmp_path, ca.directory_url, ca) as renewal:
            await renewal.check()
            assert (renewal.problem, renewal.orders) == (None, {"issued": 1, "failed": 0})


async def test_a_failed_check_is_explained_and_not_repeated_too_soon(
    tmp_path: Path, pebble: Pebble, caplog: pytest.LogCaptureFixture
) -> None:
    pebble.no_dns(NAME)
    try:
        async with renewing(tmp_path, pebble.directory_url, pebble) as renewal:
            await renewal.check()
            assert renewal.problem is not None
            assert NAME in renewal.problem.what
            assert "no certificate was issued in 1 try" in renewal.problem.what
            assert "check DNS" in renewal.problem.remedy
            assert renewal.orders == {"issued": 0, "failed": 1}
            [line] = [one for one in caplog.records if one.levelname == "ERROR"]
            assert "remedy" in vars(line)
            await renewal.check()
            assert renewal.orders["failed"] == 1
        # A restart changes nothing, and neither does the next one.
        async with renewing(tmp_path, pebble.directory_url, pebble) as renewal:
            await renewal.check()
            assert renewal.orders["failed"] == 0
            assert renewal.problem is not None
            later(renewal, 2 * HOUR)
            await renewal.check()
            assert renewal.files.state().failures == 2
    finally:
        pebble.dns(NAME)


async def test_an_operator_who_has_mended_it_need_not_wait(tmp_path: Path, pebble: Pebble) -> None:
    pebble.no_dns(NAME)
    async with renewing(tmp_path, pebble.directory_url, pebble) as renewal:
        await renewal.check()
        pebble.dns(NAME)
        renewal.hurry()
        assert 0 < await renewal.check() <= 60, "a minute after the failure at the soonest"
        later(renewal, 61)
        await renewal.check()
        assert renewal.orders == {"issued": 1, "failed": 1}
        assert renewal.problem is None
        assert renewal.files.state().failures == 0


async def test_the_old_certificate_stays_when_its_renewal_fails(
    tmp_path: Path, pebble: Pebble
) -> None:
    async with renewing(tmp_path, pebble.directory_url, pebble) as renewal:
        ending(renewal)
        before = renewal.files.certificate.read_bytes()
        pebble.no_dns(NAME)
        await renewal.check()
        pebble.dns(NAME)
        assert renewal.problem is not None
        assert renewal.problem.level == "warn"
        assert "is good for 20.0 more days" in renewal.problem.what
        assert renewal.files.certificate.read_bytes() == before


async def test_a_port_that_is_taken_is_named(tmp_path: Path, pebble: Pebble) -> None:
    with socket.create_server(("127.0.0.1", pebble.http_port)):
        async with renewing(tmp_path, pebble.directory_url, pebble) as renewal:
            await renewal.check()
            assert renewal.problem is not None
            assert "acme_http_port" in renewal.problem.what
            assert "tls-alpn-01" in renewal.problem.remedy


async def test_a_server_that_stops_in_the_middle_gives_its_lease_back(
    tmp_path: Path, pebble: Pebble
) -> None:
    store = f"sqlite:///{tmp_path / 'shared.db'}"
    url = pebble.directory_url
    async with renewing(tmp_path / "b", url, pebble, store) as other:
        async with renewing(tmp_path / "a", url, pebble, store, spread_seconds=60) as renewal:
            tasks = BackgroundTasks(Random(1))
            renewal.start_tasks(tasks)
            async with asyncio.timeout(10):
                while not renewal.answers.to_http:  # noqa: ASYNC110 - the CA is asked in a thread
                    await asyncio.sleep(0.02)
            await renewal.close(tasks)
        await other.check()
        assert other.orders == {"issued": 1, "failed": 0}


async def test_one_server_of_a_store_orders_and_the_other_answers(
    tmp_path: Path, pebble: Pebble
) -> None:
    store = f"sqlite:///{tmp_path / 'shared.db'}"
    url = pebble.directory_url
    # The CA finds the other one: the port of the one that orders leads nowhere.
    async with (
        renewing(tmp_path / "b", url, pebble, store) as other,
        renewing(
            tmp_path / "a", url, pebble, store, http_port=free_port(), spread_seconds=2.5
        ) as renewal,
    ):
        ordering = asyncio.create_task(renewal.check())
        async with asyncio.timeout(10):
            while not other.answers.to_http:  # noqa: ASYNC110 - it asks the store by time
                await asyncio.sleep(0.05)
        await other.check()
        assert other.orders == {"issued": 0, "failed": 0}, "it waits for its turn"
        await ordering
        assert (renewal.orders["issued"], other.files.issued()) == (1, None)
        await other.check()
        assert other.orders["issued"] == 1


# ── with a CA that fails ──────────────────────────────────────────────────────────────────────


async def test_a_ca_that_is_away_is_named_and_tried_again_soon(tmp_path: Path) -> None:
    url = f"https://127.0.0.1:{free_port()}/dir"
    async with renewing(tmp_path, url) as renewal:
        await renewal.check()
        state = renewal.files.state()
        assert (state.code, state.failures) == ("unreachable", 1)
        assert "Connection refused" in state.reason
        assert state.next_try - state.failed_at < 100


async def test_a_ca_whose_own_certificate_is_not_trusted_is_named(
    tmp_path: Path, pebble: Pebble
) -> None:
    async with renewing(tmp_path, pebble.directory_url) as renewal:
        await renewal.check()
        state = renewal.files.state()
        assert "certificate verify failed" in state.reason
        assert "acme_ca" in state.remedy


class _Scripted(BaseHTTPRequestHandler):
    """A CA that says one thing to whoever wants an account."""

    problem: tuple[int, bytes]

    def do_GET(self) -> None:
        base = f"http://127.0.0.1:{self.server.server_address[1]}"
        names = ("newNonce", "newAccount", "newOrder")
        self._say(200, json.dumps({name: f"{base}/{name}" for name in names}).encode())

    def do_HEAD(self) -> None:
        self._say(200, b"")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self._say(*self.problem)

    def _nonce(self) -> str:
        return "bm9uY2U"

    def _say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("replay-nonce", self._nonce())
        self.send_header("content-type", "application/problem+json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


TOO_MANY = {"type": "urn:ietf:params:acme:error:rateLimited", "detail": "too many accounts"}
BAD_NONCE = {"type": "urn:ietf:params:acme:error:badNonce", "detail": "unknown nonce"}


class _Forgetful(_Scripted):
    """A CA that forgets as many of its nonces as it is told, which chance makes Pebble do."""

    problem = (429, json.dumps(TOO_MANY).encode())
    forgets: int
    made: Iterator[int]
    got: list[str]

    def do_POST(self) -> None:
        signed = json.loads(self.rfile.read(int(self.headers["content-length"])))
        header = json.loads(b64decode(signed["protected"] + "==", b"-_"))
        self.got.append(header["nonce"])
        forgotten = len(self.got) <= self.forgets
        self._say(*((400, json.dumps(BAD_NONCE).encode()) if forgotten else self.problem))

    def _nonce(self) -> str:
        return f"nonce{next(self.made):03}"


def scripted(status: int, body: bytes) -> contextlib.AbstractContextManager[str]:
    return serving(type("Handler", (_Scripted,), {"problem": (status, body)}))


@contextlib.contextmanager
def serving(handler: type[_Scripted]) -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/dir"
        finally:
            server.shutdown()
            thread.join()


async def test_the_rate_limits_of_a_ca_are_respected(tmp_path: Path) -> None:
    with scripted(429, json.dumps(TOO_MANY).encode()) as url:
        async with renewing(tmp_path, url) as renewal:
            await renewal.check()
    state = AcmeFiles(tmp_path).state()
    assert (state.code, state.reason) == ("rate_limited", "too many accounts")
    assert "--acme-staging" in state.remedy
    assert state.next_try - state.failed_at >= HOUR


@pytest.mark.parametrize(("forgets", "code"), [(9, "rate_limited"), (1000, "refused")])
async def test_a_nonce_that_the_ca_forgot_is_replaced_up_to_nine_times(
    tmp_path: Path, forgets: int, code: str
) -> None:
    got: list[str] = []
    script = {"forgets": forgets, "made": itertools.count(), "got": got}
    with serving(type("Handler", (_Forgetful,), script)) as url:
        async with renewing(tmp_path, url) as renewal:
            await renewal.check()
            state = renewal.files.state()
    assert state.code == code
    assert state.reason == ("too many accounts" if code == "rate_limited" else "unknown nonce")
    assert len(set(got)) == len(got) == 10


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b"<html>busy</html>"),
        (500, b'{"type": "urn:ietf:params:acme:error:serverInternal"}'),
        (201, b"[]"),
        (201, b"null"),
        (201, b'{"contact": 7}'),
        (201, b'"x"'),
        (400, b'{"type": 7, "detail": ["x"], "subproblems": 3}'),
        (400, b'{"detail": "' + b"x" * 100_000 + b'"}'),
    ],
)
async def test_what_no_ca_should_answer_is_a_failure_as_any_other(
    tmp_path: Path, status: int, body: bytes
) -> None:
    with scripted(status, body) as url:
        async with renewing(tmp_path, url) as renewal:
            await renewal.check()
            assert renewal.problem is not None
            assert renewal.orders == {"issued": 0, "failed": 1}
            state = renewal.files.state()
            assert state.code == "refused"
            assert len(state.reason) <= 600


async def test_an_answer_without_an_end_is_not_read_to_it(tmp_path: Path) -> None:
    with scripted(201, b"[" + b" " * 2**20 + b"]") as url:
        async with renewing(tmp_path, url) as renewal:
            await renewal.check()
            assert "its answer is longer than 1048576 bytes" in renewal.files.state().reason
            assert renewal.files.state().code == "unreachable"
            assert renewal.problem is not None


async def test_a_ca_that_never_gets_done_is_a_failure_and_the_next_try_waits_for_no_thread(
    tmp_path: Path,
) -> None:
    asked = 0
    over = asyncio.Event()

    async def dribble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        writer.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
        await over.wait()
        writer.close()

    async with await asyncio.start_server(dribble, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/dir"
        async with renewing(tmp_path, url, order_seconds=2.0) as renewal, asyncio.timeout(12):
            for tries in (1, 2):
                later(renewal, tries * HOUR)
                await renewal.check()
                state = renewal.files.state()
                assert (state.code, state.failures, asked) == ("unreachable", tries, tries)
                assert "the CA was not done after 2 s" in state.reason
                assert renewal.problem is not None
        over.set()


async def test_a_try_that_was_cut_short_counts(tmp_path: Path, pebble: Pebble) -> None:
    async with renewing(tmp_path, pebble.directory_url, pebble, spread_seconds=60.0) as renewal:
        ordering = asyncio.create_task(renewal.check())
        async with asyncio.timeout(10):
            while not renewal.answers.to_http:  # noqa: ASYNC110 - the CA is asked in a thread
                await asyncio.sleep(0.02)
        ordering.cancel()
        await asyncio.gather(ordering, return_exceptions=True)
        state = renewal.files.state()
        assert (state.code, state.failures) == ("interrupted", 1)
        assert state.next_try > time.time() + 200
        assert not renewal.answers.to_http, "its lease was given back"


async def test_a_clock_that_was_set_back_stops_nothing_for_long(
    tmp_path: Path, pebble: Pebble
) -> None:
    async with renewing(tmp_path, pebble.directory_url, pebble) as renewal:
        renewal.files.save(State(failures=3, failed_at=time.time() + DAY, next_try=2e9))
        await renewal.check()
        assert renewal.orders["issued"] == 1


async def test_a_damaged_state_is_made_again(tmp_path: Path, pebble: Pebble) -> None:
    async with renewing(tmp_path, pebble.directory_url, pebble) as renewal:
        (renewal.files.directory / "state.json").write_text("{half")
        await renewal.check()
        assert renewal.orders["issued"] == 1
