"""When to ask a silent peer for a sign of life, and when to give it up.

Idle, a peer is asked after 15 s ± 20 % of silence and given up after the third interval without a
byte.  While streams run it is asked after 5 s and given up 5 s later, so that nobody waits for an
answer on a dead connection for more than 10 s.

A tunnel that has been silent when a stream is opened on it is asked there and then, and in doubt
2 s later.  That is no verdict: it is a reason to look whether another tunnel does better.
"""

from __future__ import annotations

from enum import Enum
from random import Random

IDLE_SECONDS = 15.0
BUSY_SECONDS = 5.0
IDLE_MISSES = 2
QUIET_SECONDS = 2.0
"""What has been silent for so long is asked when it is to be used again."""
DOUBT_SECONDS = 2.0
"""It may take so long to answer that."""


class Verdict(Enum):
    WAIT = "wait"
    ASK = "ask"
    DOUBT = "doubt"
    DEAD = "dead"


class KeepAlive:
    """Any byte from the peer is a sign of life: the owner stores its time in ``heard``."""

    __slots__ = ("_asked", "_busy_since", "_interval", "_misses", "_probed", "heard")

    def __init__(self, now: float, rng: Random) -> None:
        self.heard = now
        self._interval = IDLE_SECONDS * rng.uniform(0.8, 1.2)  # so that nodes don't ping in step
        self._asked = float("-inf")
        self._misses = 0
        self._probed = float("-inf")
        self._busy_since: float | None = None

    @property
    def _unanswered(self) -> bool:
        # An answer may carry the time of its question: uvloop's clock ticks in milliseconds.
        return self._asked > self.heard

    def busy(self, now: float) -> float:
        """Streams run from now on; returns the new deadline."""
        self._busy_since = now
        return self.deadline()

    def idle(self) -> None:
        """The last stream has ended."""
        self._busy_since = None

    def probed(self, now: float) -> float:
        """It was asked because it is to be used now; returns the new deadline."""
        self._probed = now
        return self.deadline()

    def deadline(self) -> float:
        """When ``check`` has something to say if nothing is heard until then."""
        if self._probed > self.heard:
            return min(self._probed + DOUBT_SECONDS, self._life_deadline())
        return self._life_deadline()

    def _life_deadline(self) -> float:
        since = self._asked if self._unanswered else self.heard
        if self._busy_since is None:
            return since + self._interval
        return max(since, self._busy_since) + BUSY_SECONDS

    def check(self, now: float) -> Verdict:
        """Call again until it says WAIT."""
        if self._probed > self.heard and now >= self._probed + DOUBT_SECONDS:
            self._probed = float("-inf")
            return Verdict.DOUBT
        if now < self._life_deadline():
            return Verdict.WAIT
        if not self._unanswered:
            self._misses = 0
        elif self._busy_since is not None and self._asked >= self._busy_since:
            return Verdict.DEAD
        else:
            self._misses += 1
            if self._misses >= IDLE_MISSES:
                return Verdict.DEAD
        self._asked = now
        return Verdict.ASK
