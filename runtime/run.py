"""Event loop of a program, and its signals.

    SIGINT, SIGTERM   the first: finish what runs, then exit; the second: exit now; the third has
                      the default effect
    SIGHUP            ``on_hangup``; stops the program when its terminal is gone

Windows has SIGINT and SIGBREAK only, and its loop can't watch them: plain handlers are used.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from runtime.descriptors import allow_many_files

INTERRUPTED = 130
"""Exit code after Ctrl-C, as in shells."""

WAKE_SECONDS = 0.5

T = TypeVar("T")

_STOPPING = ("SIGINT", "SIGTERM", "SIGBREAK")


class Signals:
    """Signals that the program has received; created by ``run``."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        """Set by the first signal.  At the second one, the program is cancelled."""
        self.on_hangup: Callable[[], None] | None = None
        """Called at SIGHUP, as in daemons; with None, SIGHUP stops the program."""
        self.interrupted = False
        """The first signal was Ctrl-C."""
        self.hurry = False
        """There was a second signal."""
        self._on_terminal = sys.stderr is not None and sys.stderr.isatty()

    def watch(self, program: asyncio.Task[Any]) -> None:
        self._program = program
        for name in (*_STOPPING, "SIGHUP"):
            number = getattr(signal, name, None)
            # The parent process may have chosen to ignore some, as nohup does.
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
    """Run ``program`` to its end, on uvloop where that is installed; return the exit code.

    ``program`` waits for ``signals.stop``; a second signal cancels it.
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

    allow_many_files()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(watched())


async def unless_stopped(signals: Signals, work: Coroutine[Any, Any, T]) -> T | None:
    """Await ``work`` and return its result, or None when a signal comes first.

    ``work`` is cancelled then, and awaited.
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
    """Wake the loop often: a plain handler runs only while the loop is awake."""
    loop.call_later(WAKE_SECONDS, _stay_awake, loop)
