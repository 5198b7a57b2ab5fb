"""How fast each engine has answered for each model: measured, smoothed, and forgotten in time."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from fabric_server.nodes.registry import Engine

MAX_RECORDS = 65_536
MAX_MODELS = 4_096
FORGET_SECONDS = 900.0
"""What was measured counts less and less, and after this time not at all: the engine is tried
again, however slow it was."""
SHARE = 0.25
"""Weight of the newest measurement."""
SHARE_OF_ALL = 0.02
"""The same in the mean over all engines."""
FEWEST_TOKENS = 8
"""Shorter answers tell nothing about tokens a second."""
MAX_RATE = 10_000.0
MAX_SECONDS = 600.0
"""Nobody gets all requests for claiming a miracle, nor is unsettled by one disaster."""
ASSUMED_FIRST_BYTE = 1.0
ASSUMED_RATE = 30.0
ASSUMED_LOAD = 10.0
"""Seconds that a model takes into the accelerator's memory, where that was not measured."""
FAILED_SECONDS = 30.0
"""What a failure counts as: somebody waited for nothing."""


class Expected(NamedTuple):
    first_byte: float
    """Seconds."""
    rate: float
    """Tokens a second."""
    load: float
    """Seconds more if the model has to be loaded first."""
    known: bool
    """From this engine itself; otherwise it is what all of them do."""


class _Record:
    __slots__ = ("at", "first_byte", "load", "rate")

    def __init__(self, first_byte: float, rate: float, load: float, at: float) -> None:
        self.first_byte = first_byte
        self.rate = rate
        self.load = load
        self.at = at


class LatencyEstimates:
    """Times are event-loop seconds.  What is known survives that a node goes and comes back."""

    def __init__(self, most: int = MAX_RECORDS) -> None:
        self._most = most
        self._records: dict[tuple[str, str, str], _Record] = {}
        self._models: dict[str, _Record] = {}
        self._nothing = _Record(ASSUMED_FIRST_BYTE, ASSUMED_RATE, ASSUMED_LOAD, 0.0)

    def __len__(self) -> int:
        return len(self._records)

    def of(self, engine: Engine, model: str, now: float) -> Expected:
        all_ = self._models.get(model, self._nothing)
        record = self._records.get((engine.node.id, engine.name, model))
        if record is not None:
            left = 1.0 - (now - record.at) / FORGET_SECONDS
            if left > 0.0:
                return Expected(
                    all_.first_byte + (record.first_byte - all_.first_byte) * left,
                    all_.rate + (record.rate - all_.rate) * left,
                    record.load,
                    True,
                )
        return Expected(all_.first_byte, all_.rate, all_.load, False)

    def learn(
        self,
        engine: Engine,
        model: str,
        first_byte_s: float | None,
        tokens: int | None,
        seconds: float,
        *,
        now: float,
        cold: bool = False,
    ) -> None:
        """A request was answered: its first byte came after ``first_byte_s`` (None when the answer
        came in one piece), and ``tokens`` of answer in ``seconds``.

        ``cold`` when the model had to be loaded: then it tells how long that takes.
        """
        rate = None
        if tokens is not None and tokens >= FEWEST_TOKENS and seconds > 0:
            rate = min(tokens / seconds, MAX_RATE)
        if cold and first_byte_s is None:
            return  # neither can be told from the other
        if first_byte_s is not None:
            first_byte_s = min(first_byte_s, MAX_SECONDS)
        self._take(engine, model, first_byte_s, rate, now, cold=cold)

    def outwait(self, engine: Engine, model: str, seconds: float, *, now: float) -> None:
        """Another was quicker, and this one's first byte had not come after so long.  That it might
        have come the next moment is all the more reason to learn only what is above expectation."""
        if seconds > self.of(engine, model, now).first_byte:
            self._take(engine, model, min(seconds, MAX_SECONDS), None, now)

    def fail(self, engine: Engine, model: str, *, now: float) -> None:
        """A request was given to it and came to nothing.  Without this, whoever fails at once would
        seem idle, and be asked again and again."""
        self._take(engine, model, FAILED_SECONDS, None, now, first_share=SHARE)

    def _take(
        self,
        engine: Engine,
        model: str,
        first: float | None,
        rate: float | None,
        now: float,
        *,
        cold: bool = False,
        first_share: float = 1.0,
    ) -> None:
        all_ = self._models.get(model)
        if all_ is None:
            none = self._nothing
            all_ = self._models[model] = _Record(none.first_byte, none.rate, none.load, now)
            if len(self._models) > MAX_MODELS:
                del self._models[next(iter(self._models))]
        key = engine.node.id, engine.name, model
        record = self._records.pop(key, None)
        if record is None or now - record.at > FORGET_SECONDS:
            record = _Record(all_.first_byte, all_.rate, all_.load, now)
            own = first_share
        else:
            own = SHARE
        self._records[key] = record  # the last in the dictionary's order
        if len(self._records) > self._most:
            del self._records[next(iter(self._records))]
        record.at = now
        for one, share in ((record, own), (all_, SHARE_OF_ALL)):
            if first is not None:
                if cold:
                    one.load += (max(0.0, first - one.first_byte) - one.load) * share
                else:
                    one.first_byte += (first - one.first_byte) * share
            if rate is not None:
                one.rate += (rate - one.rate) * share
