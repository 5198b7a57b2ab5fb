"""Latency estimates of each engine for each model: measured, smoothed, and forgotten in time."""

from __future__ import annotations

import math

from fabric_server.nodes.node import Engine
from fabric_server.nodes.offers import Estimate, Latency, Offer

MAX_RECORDS = 65_536
MAX_MODELS = 4_096
FORGET_SECONDS = 900.0
"""Measurements lose weight linearly and have none after this time: the engine is tried again,
however slow it was."""
SHARE = 0.25
"""Weight of the newest measurement."""
SHARE_OF_ALL = 0.02
"""Weight of the newest measurement in the mean over all engines."""
FEWEST_TOKENS = 8
"""Shorter answers do not show a rate of tokens."""
MAX_RATE = 10_000.0
MAX_SECONDS = 600.0
"""Single measurements are clamped to these, against outliers."""
ASSUMED_FIRST_BYTE = 1.0
ASSUMED_RATE = 30.0
ASSUMED_LOAD = 10.0
"""Seconds to load a model into the accelerator's memory, where that was not measured."""
FAILED_SECONDS = 30.0
"""Seconds until the first byte that a failure counts as."""


def tokens_per_second(tokens: int | None, seconds: float) -> float | None:
    """Return the rate of an answer; None where the answer is too short to show one."""
    if tokens is None or tokens < FEWEST_TOKENS or seconds <= 0:
        return None
    return min(tokens / seconds, MAX_RATE)


class LatencyEstimates:
    """Exponentially weighted averages by engine and model.

    Times are event-loop seconds.  The estimates of a node outlive its registration, for when it
    comes back; while it is here, its offers have them at hand.
    """

    def __init__(self, most: int = MAX_RECORDS) -> None:
        self._most = most
        self._records: dict[tuple[str, str, str], Latency] = {}
        self._models: dict[str, Latency] = {}
        self._default = Latency(ASSUMED_FIRST_BYTE, ASSUMED_RATE, ASSUMED_LOAD, 0.0)

    def __len__(self) -> int:
        return len(self._records)

    def estimate(self, engine: Engine, model: str, now: float) -> Estimate:
        return self.expect(engine, engine.offers.get(model), model, now)

    def expect(self, engine: Engine, offer: Offer | None, model: str, now: float) -> Estimate:
        """Return the estimate of an engine whose offer of the model is at hand."""
        mean = self._models.get(model, self._default)
        record = None if offer is None else offer.latency
        if record is None:
            record = self._find(engine, model, offer)
        if record is not None:
            left = 1.0 - (now - record.at) / FORGET_SECONDS
            if left > 0.0:
                return Estimate(
                    mean.first_byte + (record.first_byte - mean.first_byte) * left,
                    mean.rate + (record.rate - mean.rate) * left,
                    record.load,
                    True,
                )
        return Estimate(mean.first_byte, mean.rate, mean.load, False)

    def _find(self, engine: Engine, model: str, offer: Offer | None) -> Latency | None:
        """Return what was measured before the engine's registration, and keep it at the offer."""
        record = self._records.get(_key(engine, model, offer))
        if offer is not None:
            offer.latency = record
        return record

    def update(
        self,
        engine: Engine,
        model: str,
        first_byte_s: float | None,
        rate: float | None,
        *,
        now: float,
        cold: bool = False,
    ) -> None:
        """Take in one answered request.

        ``first_byte_s`` is None for an answer in one piece, ``rate`` is from
        ``tokens_per_second``.  ``cold`` means that the model had to be loaded; the time until the
        first byte then shows how long loading takes.
        """
        if first_byte_s is not None:
            first_byte_s = min(first_byte_s, MAX_SECONDS)
        elif cold:
            return  # loading and generating can't be told apart
        record, mean, weight = self._touch(engine, model, now, 1.0)
        for one, share in ((record, weight), (mean, SHARE_OF_ALL)):
            if first_byte_s is not None:
                if cold:
                    one.load += (max(0.0, first_byte_s - one.first_byte) - one.load) * share
                else:
                    one.first_byte += (first_byte_s - one.first_byte) * share
            if rate is not None:
                one.rate += (rate - one.rate) * share

    def observe_at_least(self, engine: Engine, model: str, seconds: float, *, now: float) -> None:
        """Take in that no first byte came within ``seconds``, of an attempt that lost to a hedge.

        The byte might have come the next moment, so the observation is a lower bound: it counts
        only where it exceeds the estimate.
        """
        if seconds > self.estimate(engine, model, now).first_byte:
            self._add_first_byte(engine, model, min(seconds, MAX_SECONDS), now, 1.0)

    def observe_nothing(self, engine: Engine, model: str, *, now: float) -> None:
        """Take in an attempt that shows nothing: an engine without estimates counts as average.

        Engines that are not known yet go before all others, to be measured.  One whose answers
        can't be measured, such as errors, would otherwise go before all others for ever.
        """
        record = self._records.get(_key(engine, model, engine.offers.get(model)))
        if record is None or now - record.at > FORGET_SECONDS:
            self._touch(engine, model, now, 1.0)

    def penalize(self, engine: Engine, model: str, *, now: float) -> None:
        """Take in a failed request as a slow one.

        Without this an engine that fails at once would seem idle and attract every request.
        """
        self._add_first_byte(engine, model, FAILED_SECONDS, now, SHARE)

    def _add_first_byte(
        self, engine: Engine, model: str, seconds: float, now: float, first_weight: float
    ) -> None:
        record, mean, weight = self._touch(engine, model, now, first_weight)
        record.first_byte += (seconds - record.first_byte) * weight
        mean.first_byte += (seconds - mean.first_byte) * SHARE_OF_ALL

    def _touch(
        self, engine: Engine, model: str, now: float, first_weight: float
    ) -> tuple[Latency, Latency, float]:
        """Return the engine's record, the model's mean and the weight of a new measurement.

        ``first_weight`` is the weight of the first measurement of an engine.
        """
        mean = self._models.get(model)
        if mean is None:
            default = self._default
            mean = Latency(default.first_byte, default.rate, default.load, now)
            self._models[model] = mean
            if len(self._models) > MAX_MODELS:
                del self._models[next(iter(self._models))]
        offer, weight = engine.offers.get(model), SHARE
        key = _key(engine, model, offer)
        record = self._records.pop(key, None)
        if record is None:
            record = Latency(0.0, 0.0, 0.0, -math.inf)
        if now - record.at > FORGET_SECONDS:
            record.first_byte, record.rate, record.load = mean.first_byte, mean.rate, mean.load
            weight = first_weight
        if offer is not None:
            offer.latency = record
        self._records[key] = record  # becomes the last in the dictionary's order
        if len(self._records) > self._most:
            self._records.pop(next(iter(self._records))).at = -math.inf  # also where it is at hand
        record.at = now
        return record, mean, weight


def _key(engine: Engine, model: str, offer: Offer | None) -> tuple[str, str, str]:
    """Return the key of an engine's measurements: a model has one, whatever name is asked for."""
    return engine.node.id, engine.name, model if offer is None else offer.report.name
