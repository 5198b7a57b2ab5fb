"""A second node is asked when the first is unusually slow to begin its answer.  Whoever brings the
first byte of a body answers, and the other is told to stop (``Attempt.rival``).

    Hedging   whether, and after how long: learnt from the first bytes of each model
    Hedge     one request's: waits for that moment, and has the second one asked
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from fabric_server.net.deadlines import NEVER, Deadlines
from fabric_server.proxy.attempt import Attempt
from fabric_server.proxy.quantile import Window

SHARE = 0.95
"""Of answers that have begun by then: so a twentieth of requests is asked twice, at most."""
MAX_MODELS = 1024


class Hedging:
    """Streams and whole answers are told apart: the first byte of the latter is the last, too."""

    def __init__(self, *, on: bool = False) -> None:
        self.on = on
        self._windows: dict[tuple[str, bool], Window] = {}

    def after(self, model: str, *, stream: bool) -> float | None:
        """Seconds without a first byte after which a second node is to be asked; None is never."""
        if not self.on:
            return None
        window = self._windows.get((model, stream))
        return None if window is None else window.quantile(SHARE)

    def learn(self, model: str, seconds: float, *, stream: bool) -> None:
        """A first byte came after so long."""
        if not self.on:
            return
        key = model, stream
        window = self._windows.pop(key, None) or Window()
        self._windows[key] = window  # the last in the dictionary's order
        if len(self._windows) > MAX_MODELS:
            del self._windows[next(iter(self._windows))]
        window.add(seconds)

    def learn_at_least(self, model: str, seconds: float, *, stream: bool) -> None:
        """No first byte had come after so long, when the other one's did.  Left out, those that are
        slow would be missed, and the moment would move ahead; but that it takes longer than most is
        all that is known, so less than that tells nothing."""
        after = self.after(model, stream=stream)
        if after is not None and seconds >= after:
            self.learn(model, seconds, stream=stream)


class Hedge:
    """``with Hedge(…):`` around waiting for an answer; asks once, or not at all."""

    __slots__ = ("_ask", "_deadlines", "_first", "deadline")

    def __init__(
        self, first: Attempt, ask: Callable[[Attempt], None], deadlines: Deadlines, at: float
    ) -> None:
        """``ask`` begins a rival of ``first``, if that is possible at once; ``at`` is in event-loop
        seconds."""
        self._first = first
        self._ask = ask
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
            self._ask(first)
