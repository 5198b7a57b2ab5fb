"""Hedged requests: a second node is asked when the first is unusually slow to begin its answer.

The attempt with the first byte of a body answers; the other is cancelled (``Attempt.hedge``).

    Hedging      whether to hedge, and after how long: learnt from the first bytes of each model
    HedgeTimer   one request's: waits for that moment, and starts the second attempt
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from fabric_server.net.deadlines import NEVER, Deadlines
from fabric_server.proxy.attempt import Attempt
from fabric_server.proxy.quantile import Window

SHARE = 0.95
"""Share of answers that have begun before the hedge: at most a twentieth of requests is hedged."""
MAX_MODELS = 1024


class Hedging:
    """Times until the first byte, by model; streams and other answers, whose first byte comes with
    the last, are measured apart."""

    def __init__(self, *, on: bool = False) -> None:
        self.on = on
        self._windows: dict[tuple[str, bool], Window] = {}

    def after(self, model: str, *, stream: bool) -> float | None:
        """Return the seconds to wait for a first byte before a hedge; None: no hedge."""
        if not self.on:
            return None
        window = self._windows.get((model, stream))
        return None if window is None else window.quantile(SHARE)

    def observe(self, model: str, seconds: float, *, stream: bool) -> None:
        """Add the time that a first byte took."""
        if not self.on:
            return
        key = model, stream
        window = self._windows.pop(key, None) or Window()
        self._windows[key] = window  # the last in the dictionary's order
        if len(self._windows) > MAX_MODELS:
            del self._windows[next(iter(self._windows))]
        window.add(seconds)

    def observe_at_least(self, model: str, seconds: float, *, stream: bool) -> None:
        """Add the time after which an attempt lost to its hedge, without a first byte of its own.

        Left out, slow engines would be missing from the window, and hedges would start ever sooner.
        The time is a lower bound, so one below the quantile tells nothing and is dropped.
        """
        after = self.after(model, stream=stream)
        if after is not None and seconds >= after:
            self.observe(model, seconds, stream=stream)


class HedgeTimer:
    """``with HedgeTimer(…):`` around waiting for an answer; starts one hedge at most."""

    __slots__ = ("_deadlines", "_first", "_start", "deadline")

    def __init__(
        self, first: Attempt, start: Callable[[Attempt], None], deadlines: Deadlines, at: float
    ) -> None:
        """``start`` starts a hedge of ``first``, if that is possible at once; ``at`` is in
        event-loop seconds."""
        self._first = first
        self._start = start
        self._deadlines = deadlines
        self.deadline = at

    def __enter__(self) -> None:
        self._deadlines.add(self)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._deadlines.discard(self)

    def expire(self, now: float) -> None:
        self.deadline = NEVER
        first = self._first
        if first.ending is None and first.first_byte_at is None:
            self._start(first)
