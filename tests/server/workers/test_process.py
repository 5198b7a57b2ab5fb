"""A worker as its parent sees it: a process that can't be started, and one that comes and goes."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from fabric_server.app.introduction import Introduction
from fabric_server.config import Config
from fabric_server.workers import messages
from fabric_server.workers import parent as whole
from fabric_server.workers.messages import Begun, Joined, Message, Order, Start
from fabric_server.workers.pairs import Pairs
from fabric_server.workers.process import Worker, WorkerProblem
from fabric_server.workers.worker import WorkerSeat
from runtime.run import Signals

BEGUN = Begun(Introduction("", ()))


class Parent:
    """An owner that answers nothing; ``changed`` is set at each change."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()

    def on_begun(self, worker: Worker) -> None: ...
    def on_registered(self, worker: Worker, registered: messages.Registered) -> None: ...
    def on_needs(self, worker: Worker, needs: messages.Needs) -> None: ...
    def on_ended(self, worker: Worker) -> None: ...
    def on_parted(self, worker: Worker, peer: str) -> None: ...

    def on_change(self) -> None:
        self.changed.set()

    async def on_ask(self, worker: Worker, what: messages.Question) -> bytes:
        raise NotImplementedError


class Heard(Worker):
    """A worker without a process: what is sent to it is kept in ``sent``."""

    def __init__(self, number: int = 0, settings: Config | None = None) -> None:
        super().__init__(Start(settings or Config(), number, 2, {}), Parent())
        self.sent: list[Message] = []

    def send(self, message: Message, files: Sequence[int] = ()) -> None:
        self.sent.append(message)
        for file in files:
            os.close(file)


@contextmanager
def without_descriptors() -> Iterator[None]:
    """Have this process get no descriptor more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open("/dev/null", os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_worker_that_cannot_be_started_says_so_and_is_tried_again(tmp_path: Path) -> None:
    parent = Parent()
    worker = Worker(Start(Config(data=tmp_path), 0, 2, {}), parent)
    with without_descriptors():
        running = asyncio.create_task(worker.run())
        async with asyncio.timeout(10):
            with pytest.raises(WorkerProblem, match="w0 could not be started"):
                await worker.first
    async with asyncio.timeout(30):
        while not worker.pid:
            assert not running.done(), "nobody starts it again"
            parent.changed.clear()
            await parent.changed.wait()
            await asyncio.sleep(0)  # its process is made behind the change
        worker.stopping.set()
        worker.kill()
        await running
    assert worker.report.state == "away"


async def test_a_worker_that_serves_counts_as_failing_no_more() -> None:
    worker = Heard()
    worker.failing = True
    worker.on_message(BEGUN, ())
    assert not worker.failing


async def test_a_worker_that_starts_while_settings_are_loaded_again_loads_them_when_it_serves() -> (
    None
):
    worker = Heard()
    worker.on_reload(Config())
    assert worker.sent == [], "it has no settings yet"
    worker.on_message(BEGUN, ())
    assert worker.sent == [Order("reload")]
    worker.on_reload(Config())
    worker.on_message(BEGUN, ())
    assert worker.sent == [Order("reload")], "one that serves is asked by whoever loads them"


async def test_a_worker_that_has_closed_its_channel_is_away() -> None:
    worker = Heard()
    worker.on_message(BEGUN, ())
    worker.on_closed()
    assert (worker.begun.is_set(), worker.report.state) == (False, "away")


async def test_only_the_end_ends_a_worker_that_does_not_serve_yet() -> None:
    signals = Signals()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        seat = WorkerSeat(Start(Config(), 1, 2, {}), theirs, signals)
        for what in ("yield_nodes", "keep_nodes"):
            seat.on_message(Order(what), ())
            assert not signals.stop.is_set(), what
        seat.on_message(Order("yield_users"), ())
        assert signals.stop.is_set()
        seat.channel.close()


async def test_a_worker_that_serves_during_a_takeover_is_told_to_yield_its_nodes() -> None:
    parent, worker = whole.Parent(Config(), rng=Random(0)), Heard()
    parent.workers.append(worker)
    parent.yield_nodes()
    worker.sent.clear()  # it does not serve yet, and leaves that out
    parent.on_begun(worker)
    assert worker.sent == [Order("yield_nodes")]
    parent.keep_nodes()
    worker.sent.clear()
    parent.on_begun(worker)
    assert worker.sent == []


async def test_workers_that_are_joined_are_not_connected_once_more() -> None:
    one, other = Heard(0), Heard(1)
    for worker in (one, other):
        worker.on_message(BEGUN, ())
    pairs = Pairs([one, other])
    try:
        pairs.on_lost(one, "w1")
        pairs.join(one)
        assert (one.sent, other.sent) == ([Joined("w1")], [Joined("w0")])
        assert repr(pairs) == "<Pairs of 2 workers, 0 to be connected again>"
    finally:
        pairs.close()
