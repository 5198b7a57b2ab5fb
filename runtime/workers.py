"""Work on large bodies beside the event loop, in processes of their own.

Reading 28 MiB of JSON is one call of a library, which keeps the interpreter for seconds: in a
thread it would stop the loop all the same.  ``Workers`` has two processes at most, which begin when
there is work and end when there has been none for a while:

    the usual    for what is not large
    the large    for what is over ``LARGE``: others don't wait behind it

Each works through its line in order.  A thread of its own talks to it, and the loop only waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

from runtime.worker_process import PIECE, Kind, Message, Work, receive, send

LARGE = 4 * 2**20
"""Bytes over which work is large."""
MEMORY = 2 * 2**30
"""Bytes of memory that the process for large work may take; the other one a quarter of it."""
SECONDS = 60.0
"""Time that a piece of work may take; so much that only hostile bodies need it."""
IDLE_SECONDS = 30.0
"""Time after which a process without work ends."""
_END_SECONDS = 2.0
"""Time that a process has to end by itself, once its input has ended."""


class WorkerLost(Exception):
    """The worker's process could not be started, or has ended in the middle of the work."""


class TooMuchWork(Exception):
    """The work needs more memory or time than it may take."""


class Workers:
    """Both workers; ``close`` it at the end."""

    def __init__(
        self, *, memory: int = MEMORY, seconds: float = SECONDS, idle_seconds: float = IDLE_SECONDS
    ) -> None:
        self._usual = _Worker(memory // 4, seconds, idle_seconds)
        self._large = _Worker(memory, seconds, idle_seconds)

    @property
    def pids(self) -> list[int]:
        """The processes that run now."""
        return [pid for one in (self._usual, self._large) if (pid := one.pid) is not None]

    @property
    def at_work(self) -> list[int]:
        """The processes that have work now."""
        return [one.pid for one in (self._usual, self._large) if one.busy and one.pid is not None]

    async def run(self, work: Work, pieces: Sequence[bytes], size: int) -> tuple[Any, list[bytes]]:
        """Call ``work`` with the bytes in a process; return the value and the bytes it returns.

        ``work`` is pickled, and so are its value and what it raises: they must have few parts,
        because this loop unpickles them.  ``size`` says how much work it is, in bytes.  Cancelling
        stops it.  Raises what ``work`` raises, ``WorkerLost`` or ``TooMuchWork``.
        """
        worker = self._large if size > LARGE else self._usual
        return await worker.run(_Job(work, pieces))

    def close(self) -> None:
        """End the processes; work that goes on is lost."""
        self._usual.close()
        self._large.close()


class _Job:
    """A piece of work, in line or under way."""

    __slots__ = ("given_up", "pieces", "work")

    def __init__(self, work: Work, pieces: Sequence[bytes]) -> None:
        self.work = work
        self.pieces = pieces
        self.given_up = False


class _Worker:
    """One process, and the thread that talks to it."""

    def __init__(self, memory: int, seconds: float, idle_seconds: float) -> None:
        self._memory = memory
        self._seconds = seconds
        self._idle_seconds = idle_seconds
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="worker")
        self._lock = Lock()
        """Held for moments: what follows is written by the thread, and read by the loop."""
        self._process: subprocess.Popen[bytes] | None = None
        self._job: _Job | None = None
        self._closed = False
        self._in_line = 0
        self._idle: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int | None:
        process = self._process
        return None if process is None else process.pid

    @property
    def busy(self) -> bool:
        return self._job is not None

    async def run(self, job: _Job) -> tuple[Any, list[bytes]]:
        if self._closed:
            raise WorkerLost("the program is ending")
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        self._in_line += 1
        try:
            return await asyncio.wrap_future(self._thread.submit(self._work, job))
        finally:
            self._in_line -= 1
            self._give_up(job)
            if not self._in_line and not self._closed:
                loop = asyncio.get_running_loop()
                self._idle = loop.call_later(self._idle_seconds, self._on_idle)

    def close(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        with self._lock:
            self._closed = True
            process = self._process
            if process is not None:
                process.kill()
        if process is not None:
            self._thread.submit(self._end)
        self._thread.shutdown(wait=False)

    def _give_up(self, job: _Job) -> None:
        """Stop the work if it still goes on: what is half said can't be taken back."""
        with self._lock:
            job.given_up = True
            if self._job is job and self._process is not None:
                self._process.kill()

    def _on_idle(self) -> None:
        self._idle = None
        self._thread.submit(self._end)

    # ── in the thread ─────────────────────────────────────────────────────────────────────────

    def _work(self, job: _Job) -> tuple[Any, list[bytes]]:
        with self._lock:
            if job.given_up or self._closed:
                raise WorkerLost("the work was given up")
            self._job = job
        try:
            return self._exchange(job)
        finally:
            with self._lock:
                self._job = None

    def _exchange(self, job: _Job) -> tuple[Any, list[bytes]]:
        message = Message(Kind.JOB, pickle.dumps(job.work), job.pieces)
        while True:
            used = self._process is not None
            try:
                process = self._started(job)
                assert process.stdin is not None
                assert process.stdout is not None
                send(process.stdin.fileno(), message)
                answer = receive(process.stdout.fileno())
                break
            except (OSError, EOFError) as error:
                code = self._end()
                failure = self._failure(error, code)
                again = used and isinstance(failure, WorkerLost)  # while it had no work
                if job.given_up or self._closed or not again:
                    raise failure from None
        if answer.last:
            self._end()
        if answer.kind is Kind.NO_MEMORY:
            raise TooMuchWork(f"it needs more than {self._memory >> 20} MiB of memory")
        value = pickle.loads(answer.pickled)  # noqa: S301 - of a process that this program started
        if answer.kind is Kind.RAISED:
            raise value
        return value, list(answer.pieces)

    def _failure(self, error: Exception, code: int | None) -> WorkerLost | TooMuchWork:
        if code is not None and code == -getattr(signal, "SIGALRM", 0):
            return TooMuchWork(f"it takes more than {self._seconds:g} s")
        return WorkerLost(str(error) if code is None else f"its process ended with code {code}")

    def _started(self, job: _Job) -> subprocess.Popen[bytes]:
        if self._process is None:
            process = _start(self._memory, self._seconds)
            with self._lock:
                self._process = process
                if job.given_up or self._closed:
                    process.kill()
        assert self._process is not None
        return self._process

    def _end(self) -> int | None:
        """End the process, wait for that, and return its exit code; None if there is none."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()
        try:
            return process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


def _start(memory: int, seconds: float) -> subprocess.Popen[bytes]:
    """Start a process that finds the modules that this one has found.  Raises ``OSError``."""
    paths = os.pathsep.join(filter(None, sys.path))
    process = subprocess.Popen(  # noqa: S603 - this Python, and a module of ours
        [sys.executable, "-P", "-m", "runtime.worker_process", str(memory), str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=sys.platform != "win32",  # Ctrl-C is for the program
    )
    if sys.platform == "linux":
        import fcntl

        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):  # a user's share of pipes is used up: slower
                fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIECE)
    return process
