"""One end of the channel between parent and worker: messages, with descriptors.

A pair of Unix sockets of the kind that keeps the borders of messages (Linux).  Nobody else can have
an end: it is inherited, and has no name.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import socket
from collections import deque
from collections.abc import Sequence
from typing import Protocol

import msgspec

from fabric_server.workers import messages
from fabric_server.workers.messages import Answer, Ask, Message, Question
from runtime.background import log_failure

log = logging.getLogger("fabric.workers")

MAX_MESSAGE = 65_536
"""Bytes of a message."""
MAX_FILES = 64
"""Descriptors in a message; Linux has 253."""
READS_PER_TURN = 16
RETRY_SECONDS = 0.01
"""Pause where a user passes more sockets than the kernel allows at once, or it lacks memory."""
_PASSING = frozenset({errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM})
_GONE = frozenset({errno.EPIPE, errno.ECONNRESET})
ASK_SECONDS = 5.0
"""How long an answer may take."""


class Owner(Protocol):
    """The parent or worker that has this end of the channel."""

    def on_message(self, message: Message, files: Sequence[int]) -> None:
        """Take a message; the descriptors are the owner's to close."""

    async def on_ask(self, what: Question) -> bytes:
        """Answer a question of the other side."""

    def on_closed(self) -> None:
        """Note that the other side is gone."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a new channel, non-blocking."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setblocking(False)
    return ends


class Channel:
    """Sends and receives; ``close`` it at the end.  Needs a running loop."""

    def __init__(self, sock: socket.socket, owner: Owner) -> None:
        self._sock = sock
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[tuple[bytes, Sequence[int]]] = deque()
        """Messages that the kernel has no room for yet; their descriptors are closed when sent."""
        self._asked: dict[int, asyncio.Future[bytes]] = {}
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self.closed = False
        self._loop.add_reader(sock, self._on_readable)

    @property
    def waiting(self) -> int:
        """Messages that the other side has not taken yet, beyond what the kernel keeps."""
        return len(self._waiting)

    def send(self, message: Message, files: Sequence[int] = ()) -> None:
        """Send a message and pass the descriptors on: they are closed here once that is done."""
        if self.closed:
            _close(files)
            return
        self._waiting.append((messages.encode(message), files))
        if len(self._waiting) == 1:
            self._flush()

    async def ask(self, what: Question) -> bytes:
        """Return the other side's answer.

        Raises ``TimeoutError``, or ``ConnectionError`` when it is gone.
        """
        if self.closed:
            raise ConnectionError("it is gone")
        number = next(self._numbers)
        answer: asyncio.Future[bytes] = self._loop.create_future()
        self._asked[number] = answer
        self.send(Ask(number, what))
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return await answer
        finally:
            del self._asked[number]

    def close(self) -> None:
        """Close this end; the other side notices."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
        for _, files in self._waiting:
            _close(files)
        self._waiting.clear()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(ConnectionError("it is gone"))
        for task in self._tasks:
            task.cancel()

    def _lost(self) -> None:
        if not self.closed:
            self.close()
            self._owner.on_closed()

    def _flush(self) -> None:
        while self._waiting:
            data, files = self._waiting[0]
            try:
                socket.send_fds(self._sock, [data], files)
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._sock, self._on_writable)
                return
            except OSError as error:
                if error.errno in _PASSING:  # the first: passed sockets that nobody has taken yet
                    self._loop.call_later(RETRY_SECONDS, self._on_writable)
                    return
                if error.errno not in _GONE:
                    log.error(
                        "a message to another process of this server is lost",
                        extra={"reason": str(error)},
                    )
            self._waiting.popleft()
            _close(files)

    def _on_writable(self) -> None:
        if not self.closed:
            self._loop.remove_writer(self._sock)
            self._flush()

    def _on_readable(self) -> None:
        for _ in range(READS_PER_TURN):
            if self.closed:
                return
            try:
                data, files, flags, _ = socket.recv_fds(
                    self._sock, MAX_MESSAGE, MAX_FILES, socket.MSG_CMSG_CLOEXEC
                )
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._lost()
                return
            if not data:
                self._lost()
                return
            if flags & socket.MSG_CTRUNC:
                log.error("connections were lost: raise the limit of open files (ulimit -n)")
            try:
                message = messages.decode(data)
            except msgspec.MsgspecError as error:  # one that is cut off ends here, too
                _close(files)
                log.error(
                    "a message of another process of this server can't be read, and is left out",
                    extra={"reason": str(error)},
                )
                continue
            self._on_message(message, files)

    def _on_message(self, message: Message, files: Sequence[int]) -> None:
        if isinstance(message, Ask):
            task = self._loop.create_task(self._answer(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(log_failure)
        elif isinstance(message, Answer):
            answer = self._asked.get(message.number)
            for file in files:
                with os.fdopen(file, "rb") as read:
                    if answer is not None and not answer.done():
                        answer.set_result(read.read())
        else:
            self._owner.on_message(message, files)

    async def _answer(self, ask: Ask) -> None:
        answer = await self._owner.on_ask(ask.what)
        file = os.memfd_create("answer")  # it may be larger than a message
        with os.fdopen(os.dup(file), "wb") as written:
            written.write(answer)
        os.lseek(file, 0, os.SEEK_SET)
        self.send(Answer(ask.number), [file])


def _close(files: Sequence[int]) -> None:
    for file in files:
        os.close(file)
