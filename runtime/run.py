"""Runs a program's event loop, and turns signals into one wish: stop.

    SIGINT, SIGTERM   the first: finish what runs, then leave; the second: leave now; the third
                      is the operating system's
    SIGHUP            ``on_hangup``; a first signal when it was the terminal that hung up

Windows has SIGINT and SIGBREAK only, and its loop can't watch them: they come as plain handlers.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

INTERRUPTED = 130
"""The exit code of a program that Ctrl-C ended, as shells have it."""

WAKE_SECONDS = 0.5

T = TypeVar("T")

_STOPPING = ("SIGINT", "SIGTERM", "SIGBREAK")


class Signals:
    """What the program was told from outside; ``run`` makes it."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        """Set by the first signal.  At the second one, the program is cancelled."""
        self.on_hangup: Callable[[], None] | None = None
        """Called at SIGHUP, as daemons have it; None means that SIGHUP stops the program."""
        self.interrupted = False
        """Whether the first signal was Ctrl-C."""
        self.hurry = False
        """Whether there was a second."""
        self._on_terminal = sys.stderr is not None and sys.stderr.isatty()

    def watch(self, program: asyncio.Task[Any]) -> None:
        self._program = program
        for name in (*_STOPPING, "SIGHUP"):
            number = getattr(signal, name, None)
            # Whoever started us may have chosen to ignore some, as nohup does.
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                _handle(number, self._on_hangup if name == "SIGHUP" else self._on_stop)

    def _on_stop(self, number: int) -> None:
        if self.stop.is_set():
            self.hurry = True
            for name in _STOPPING:
                if hasattr(signal, name):
                    signal.signal(getattr(signal, name), signal.SIG_DFL)
            self._program.cancel()
            return
        self.interrupted = number == signal.SIGINT
        self.stop.set()

    def _on_hangup(self, number: int) -> None:
        terminal_gone = self._on_terminal and not os.isatty(2)
        if self.on_hangup is None or terminal_gone:
            self._on_stop(number)
        else:
            self.on_hangup()


def run(program: Callable[[Signals], Coroutine[Any, Any, None]]) -> int:
    """Run it to its end, on uvloop where that is installed; returns the exit code.

    ``program`` waits for ``signals.stop``; it is cancelled when it should not take its time.
    """

    async def watched() -> int:
        signals = Signals()
        current = asyncio.current_task()
        assert current is not None
        signals.watch(current)
        try:
            await program(signals)
        except asyncio.CancelledError:
            if not signals.hurry:
                raise
        return INTERRUPTED if signals.interrupted else 0

    _allow_many_files()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(watched())


async def unless_stopped(signals: Signals, work: Coroutine[Any, Any, T]) -> T | None:
    """What ``work`` gives or raises; None when a stop was wanted before it was done.

    It is cancelled then, and waited for.
    """
    loop = asyncio.get_running_loop()
    working, stopping = loop.create_task(work), loop.create_task(signals.stop.wait())
    try:
        await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        stopping.cancel()
        if not working.done():
            working.cancel()
            await asyncio.wait((working,))


def _allow_many_files() -> None:
    """Each connection is one file; the usual soft limit of 1,024 is for programs that use select.

    Where there is no such limit, as on Windows, nothing is to do.
    """
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # some systems name a limit they don't grant
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _handle(number: int, handler: Callable[[int], None]) -> None:
    loop = asyncio.get_running_loop()
    try:
        loop.add_signal_handler(number, handler, number)
    except NotImplementedError:
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(handler, number) and None)
        _stay_awake(loop)


def _stay_awake(loop: asyncio.AbstractEventLoop) -> None:
    """A plain handler runs when the loop wakes: one that comes just before it goes to sleep would
    wait for as long as the loop sleeps."""
    loop.call_later(WAKE_SECONDS, _stay_awake, loop)
