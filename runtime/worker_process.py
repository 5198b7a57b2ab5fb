"""The process of one worker: it runs the functions that a program sends it, one after the other.

    python -m runtime.worker_process MEMORY SECONDS

reads jobs from standard input and writes results to standard output.  Both are a header, a pickle
and bytes.  A job's pickle is a function; it is called with the bytes and returns a value, which is
the result's pickle, and bytes.  Only the program that has started the process can write to it.

The process ends with its input, or when a job takes more seconds than it may.  One that needs more
bytes of memory than it may gets an answer that says so.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import IntEnum
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple

Work = Callable[[bytes], tuple[Any, bytes]]

PIECE = 2**20
"""Bytes that are read or written at once."""
KEPT_MEMORY = 256 * 2**20
"""A process that has more ends after its job: the allocator would keep it."""
_HEADER = Struct(">B?QQ")


class Kind(IntEnum):
    JOB = 0
    RESULT = 1
    RAISED = 2
    """The function has raised; the pickle is the exception."""
    NO_MEMORY = 3


class Message(NamedTuple):
    kind: Kind
    pickled: bytes
    pieces: Sequence[bytes]
    last: bool = False
    """The process ends after it."""


def send(fd: int, message: Message) -> None:
    """Write a message.  Raises ``OSError``."""
    kind, pickled, pieces, last = message
    head = _HEADER.pack(kind, last, len(pickled), sum(map(len, pieces)))
    for batch in _batches([head, pickled, *pieces]):
        view = memoryview(batch)
        while view:
            view = view[os.write(fd, view) :]


def receive(fd: int) -> Message:
    """Read a message.  Raises ``OSError``, or ``EOFError`` where the other side has ended."""
    kind, last, pickled, size = _HEADER.unpack(b"".join(_read(fd, _HEADER.size)))
    return Message(Kind(kind), b"".join(_read(fd, pickled)), list(_read(fd, size)), last)


def _batches(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Join small pieces, so that each takes one call."""
    batch: list[bytes] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece)
        if size >= PIECE:
            yield b"".join(batch)
            batch, size = [], 0
    yield b"".join(batch)


def _read(fd: int, size: int) -> Iterator[bytes]:
    while size:
        data = os.read(fd, min(size, PIECE))
        if not data:
            raise EOFError("the process has ended")
        size -= len(data)
        yield data


def main() -> None:
    memory, seconds = int(sys.argv[1]), float(sys.argv[2])
    _limit(memory)
    output = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not get among the results
    gc.disable()  # the trees of a body have no circles, and looking for some takes half of the time
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            job = receive(0)
            _alarm(seconds)
            answer = _run(job)
            _alarm(0)
            send(output, answer)
            if answer.last:
                return
            del job, answer
            gc.collect()


def _run(job: Message) -> Message:
    try:
        work: Work = pickle.loads(job.pickled)  # noqa: S301 - of the program that started this
        value, rest = work(b"".join(job.pieces))
        kind, pickled, pieces = Kind.RESULT, pickle.dumps(value), [rest]
    except MemoryError:
        return Message(Kind.NO_MEMORY, b"", [], True)
    except Exception as error:
        kind, pickled, pieces = Kind.RAISED, pickle.dumps(error), []
    return Message(kind, pickled, pieces, _resident() > KEPT_MEMORY)


def _limit(memory: int) -> None:
    """Bound the memory, and let the kernel end this process before the program."""
    for name in ("SIGINT", "SIGTERM"):  # the program ends this process, by its input
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    with contextlib.suppress(OSError):  # only Linux has it
        Path("/proc/self/oom_score_adj").write_text("900")
    try:
        import resource
    except ImportError:  # Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
    with contextlib.suppress(OSError, ValueError):  # macOS refuses it
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def _alarm(seconds: float) -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _resident() -> int:
    """Return the bytes that this process keeps; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_bytes().split()[1])
    except OSError:  # not Linux
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
