"""One worker as its parent sees it: a process that is started again whenever it ends."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import pickle
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from fabric_server.config import Config
from fabric_server.workers.channel import MAX_FILES, Channel, pair
from fabric_server.workers.messages import (
    Arrived,
    Begun,
    Drained,
    Failed,
    Handed,
    Leaving,
    Load,
    Message,
    Needs,
    Order,
    Parted,
    Question,
    Registered,
    Report,
    Start,
)
from runtime.errors import Problem

log = logging.getLogger("fabric.workers")

STEADY_SECONDS = 30.0
"""A worker that has served for so long is started again at once when it ends."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
MAX_WAITING = 16
"""Messages beyond the kernel's buffer, each with many connections: a worker that has so many before
it takes none, and gets no more."""
END_SECONDS = 10.0
"""How long a process may take to end, once it has no requests."""


class WorkerProblem(Problem):
    """A worker could not start; the text says why."""


class Owner(Protocol):
    """The parent."""

    def on_begun(self, worker: Worker) -> None:
        """Note that the worker serves now."""

    def on_registered(self, worker: Worker, registered: Registered) -> None:
        """Note that a node has registered with the worker."""

    def on_needs(self, worker: Worker, needs: Needs) -> None:
        """Answer what the worker says of keys' limits."""

    def on_ended(self, worker: Worker) -> None:
        """Note that the worker's process has ended."""

    def on_parted(self, worker: Worker, peer: str) -> None:
        """Note that the worker has lost its connection to another one."""

    def on_change(self) -> None:
        """Note that a worker serves now, or no longer, or that its report is another."""

    async def on_ask(self, worker: Worker, what: Question) -> bytes:
        """Answer a question of the worker."""


class Worker:
    """A worker (``spread.Loaded``).  ``run`` starts it, again and again until it is stopping."""

    def __init__(self, start: Start, owner: Owner) -> None:
        self.restarts = 0
        self.report = Report("starting")
        """Its last one; the state is ``starting`` before the first, and ``away`` at the end."""
        self.since = time.time()
        """The time of the state's last change, Unix seconds."""
        self.failing = False
        """The worker ended soon after its start and does not serve yet: nothing waits for it."""
        self.stopping = asyncio.Event()
        """Set when it is not started again."""
        self.handed: Counter[str] = Counter()
        self.begun = asyncio.Event()
        """Set while it serves."""
        self.first: asyncio.Future[Begun] = asyncio.get_running_loop().create_future()
        """What its first start has come to."""
        self.drained = asyncio.Event()
        """Set when no request runs in it any more, or it has ended."""
        self._start = start
        self._outdated = False
        """Settings or certificates were loaded again since its process was started."""
        self._owner = owner
        self._channel: Channel | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._outgoing: list[tuple[Arrived, int]] = []

    def __repr__(self) -> str:
        return f"<Worker {self.name} {self.report.state} pid={self.pid}>"

    @property
    def number(self) -> int:
        return self._start.number

    @property
    def name(self) -> str:
        return f"w{self._start.number}"

    @property
    def pid(self) -> int:
        """The number of its process, or of the last one; 0 before the first."""
        return 0 if self._process is None else self._process.pid

    @property
    def loads(self) -> Mapping[str, Load]:
        return self.report.loads

    @property
    def takes(self) -> bool:
        """New connections may be handed to the worker."""
        channel = self._channel
        if channel is None or channel.closed or not self.begun.is_set():
            return False
        return channel.waiting < MAX_WAITING

    def hand(self, arrived: Arrived, sock: socket.socket) -> None:
        """Pass the connection on; it is closed if the worker has ended, or takes none."""
        if not self.takes:
            sock.close()
            return
        self.handed[arrived.port] += 1
        self._outgoing.append((arrived, sock.detach()))
        if len(self._outgoing) == 1:
            asyncio.get_running_loop().call_soon(self._flush)
        elif len(self._outgoing) == MAX_FILES:
            self._flush()

    def send(self, message: Message, files: Sequence[int] = ()) -> None:
        """Send a message, behind the connections that were handed over before.

        Its descriptors are closed here once that is done.
        """
        self._flush()
        if self._channel is not None:
            self._channel.send(message, files)
        else:
            for file in files:
                os.close(file)

    def on_reload(self, settings: Config) -> None:
        """Start the worker with these settings from now on; one that starts now loads them, too."""
        self._start = dataclasses.replace(self._start, settings=settings)
        self._outdated = not self.begun.is_set()

    async def ask(self, what: Question) -> bytes:
        """Return the worker's answer.  Raises ``TimeoutError`` or ``ConnectionError``."""
        if self._channel is None:
            raise ConnectionError("it is away")
        return await self._channel.ask(what)

    def _flush(self) -> None:
        outgoing, self._outgoing = self._outgoing, []
        if not outgoing:
            return
        files = [file for _, file in outgoing]
        self.send(Handed([arrived for arrived, _ in outgoing]), files)

    # ── the process ───────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Keep the worker running."""
        pause = 0.0
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            problem = ""
            try:
                code = await self._run_once()
            except OSError as error:
                code, problem = -1, str(error)
            if self.stopping.is_set():
                return
            steady = loop.time() - began >= STEADY_SECONDS
            pause = 0.0 if steady else min(max(2 * pause, FIRST_PAUSE), LONGEST_PAUSE)
            if not self.restarts:  # once is bad luck
                pause = 0.0
            self.failing = pause > 0
            self.restarts += 1
            if problem:
                log.error(
                    "a worker could not be started and is tried again",
                    extra={"of": self.name, "reason": problem, "again_in": pause},
                )
            else:
                log.error(
                    "a worker has ended and is started again; its connections are cut",
                    extra={"of": self.name, "code": code, "again_in": pause},
                )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self.stopping.wait()
                    return

    def kill(self) -> None:
        """End the process without a word to it."""
        if self._process is not None:
            self._process.kill()

    async def _run_once(self) -> int:
        self._set(Report("starting"))
        self.handed.clear()
        self.drained.clear()
        try:
            ours, theirs = pair()
            with theirs:
                self._channel = Channel(ours, self)
                self._outdated = False
                self._process = _start(self._start, theirs)
            return await _end_of(self._process)
        except OSError as error:
            self._fail(f"worker {self.name} could not be started: {error}.")
            raise
        finally:
            self._flush()
            if self._channel is not None:
                self._channel.close()
                self._channel = None
            self.begun.clear()
            self.drained.set()
            self._owner.on_ended(self)
            self._set(Report("away"))
            self._fail(f"worker {self.name} (process {self.pid}) has ended; its log says why.")

    def _set(self, report: Report) -> None:
        if report.state != self.report.state:
            self.since = time.time()
        self.report = report
        self._owner.on_change()

    def _fail(self, reason: str) -> bool:
        """Note that its first start has failed; return False if it was not the first."""
        if self.first.done():
            return False
        self.first.set_exception(WorkerProblem(reason))
        self.first.exception()  # it may be that nobody asks
        return True

    # ── called by the channel ─────────────────────────────────────────────────────────────────

    def on_message(self, message: Message, files: Sequence[int]) -> None:
        if isinstance(message, Begun):
            self.begun.set()
            self.failing = False
            if self._outdated:
                self._outdated = False
                self.send(Order("reload"))
            if not self.first.done():
                self.first.set_result(message)
            self._set(Report("ready"))
            self._owner.on_begun(self)
        elif isinstance(message, Failed):
            if not self._fail(message.reason):
                log.error("a worker can't start", extra={"of": self.name, "reason": message.reason})
        elif isinstance(message, Report):
            self._set(message)
        elif isinstance(message, Registered):
            self._owner.on_registered(self, message)
        elif isinstance(message, Needs):
            self._owner.on_needs(self, message)
        elif isinstance(message, Parted):
            self._owner.on_parted(self, message.peer)
        elif isinstance(message, Leaving):
            self.begun.clear()
            self._set(msgspec.structs.replace(self.report, state="draining"))
        elif isinstance(message, Drained):
            self.drained.set()
            if not self.stopping.is_set():  # a signal has ended it alone
                self.send(Order("exit"))

    async def on_ask(self, what: Question) -> bytes:
        return await self._owner.on_ask(self, what)

    def on_closed(self) -> None:
        """Give it nothing more; the end of its process follows."""
        self.begun.clear()
        self._set(Report("away"))


def _start(start: Start, channel: socket.socket) -> subprocess.Popen[bytes]:
    """Start a process that finds the modules that this one has found.  Raises ``OSError``."""
    paths = os.pathsep.join(filter(None, sys.path))
    with os.fdopen(os.memfd_create("start"), "w+b") as file:  # a pipe might have to be waited for
        pickle.dump(start, file)
        file.flush()
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        return subprocess.Popen(  # noqa: S603 - this Python, and a module of ours
            [*(sys.executable, "-P", "-m", "fabric_server.workers.worker", str(channel.fileno()))],
            stdin=file,
            stdout=subprocess.DEVNULL,
            pass_fds=[channel.fileno()],
            env={**os.environ, "PYTHONPATH": paths},
            start_new_session=True,  # Ctrl-C is for the parent
        )


async def _end_of(process: subprocess.Popen[bytes]) -> int:
    """Wait for the end of the process, and return its exit code.

    Raises ``OSError`` if it can't be watched; it is ended then.
    """
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        process.kill()
        process.wait()
        raise
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return process.wait()
