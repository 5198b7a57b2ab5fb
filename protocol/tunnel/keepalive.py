"""Keepalive of tunnels and links: when to ping a silent peer, and when to give it up.

An idle peer is pinged after 15 s ± 20 % of silence and given up after the third interval without a
byte.  While streams run it is pinged after 5 s and given up 5 s later, so that no request waits on
a dead connection for more than 10 s.

A tunnel that has been silent when a stream is opened on it is probed at once, and suspected 2 s
later.  A suspected tunnel is not given up: its owner checks whether another tunnel does better.

After a change of the network a peer is challenged: pinged at once, and given up 1 s later, or four
round trips if those take longer.
"""

from __future__ import annotations

from enum import Enum
from random import Random

IDLE_SECONDS = 15.0
BUSY_SECONDS = 5.0
IDLE_MISSES = 2
QUIET_SECONDS = 2.0
"""Silence after which a tunnel is probed when it is to be used again."""
SUSPECT_SECONDS = 2.0
"""Time to answer a probe before the tunnel is suspected."""
CHALLENGE_SECONDS = 1.0
CHALLENGE_ROUND_TRIPS = 4.0
"""Time to answer a challenge before the peer is given up: the longer one of the two."""


class Verdict(Enum):
    WAIT = "wait"
    PING = "ping"
    SUSPECT = "suspect"
    DEAD = "dead"


class KeepAlive:
    """Timers of one connection.  Any byte from the peer counts: set ``last_received`` to its time.

    All times are seconds on one monotonic clock, passed in.
    """

    __slots__ = (
        "_busy_since",
        "_challenge_ends",
        "_challenged",
        "_interval",
        "_misses",
        "_ping_answered",
        "_ping_sent",
        "_ping_token",
        "_pinged",
        "_probed",
        "last_received",
        "round_trip",
        "suspected",
    )

    def __init__(self, now: float, rng: Random) -> None:
        self.last_received = now
        self.suspected = False
        """A probe was not answered in time, and nothing has answered since."""
        self.round_trip: float | None = None
        """Seconds between the last answered ping and its answer."""
        self._interval = IDLE_SECONDS * rng.uniform(0.8, 1.2)  # so that nodes don't ping in step
        self._pinged = float("-inf")
        self._misses = 0
        self._probed = float("-inf")
        self._challenged = float("-inf")
        self._challenge_ends = float("inf")
        self._busy_since: float | None = None
        self._ping_token = 0
        self._ping_sent = now
        self._ping_answered = True

    @property
    def _unanswered(self) -> bool:
        # An answer may carry the time of its ping: uvloop's clock ticks in milliseconds.
        return self._pinged > self.last_received

    @property
    def _challenge_open(self) -> bool:
        return self._challenged > self.last_received

    def busy(self, now: float) -> float:
        """Note that the first stream was opened; return a deadline, which is no later than others
        that are due already."""
        self._busy_since = now
        return now + BUSY_SECONDS

    def idle(self) -> None:
        """Note that the last stream is gone."""
        self._busy_since = None

    def probe(self, now: float) -> float:
        """Note that a ping was sent because the tunnel is needed now; return the new deadline."""
        self._probed = now
        return self.deadline()

    def challenge(self, now: float) -> float:
        """Note that a ping was sent because the path may be gone; return the new deadline."""
        if self._challenged <= self.last_received:  # else the first one still counts
            self._challenged = now
            self._challenge_ends = now + max(
                CHALLENGE_SECONDS, CHALLENGE_ROUND_TRIPS * (self.round_trip or 0.0)
            )
        return self.deadline()

    def ping(self, now: float) -> int:
        """Return the token of a ping to send now."""
        self._ping_token += 1
        self._ping_sent = now
        self._ping_answered = False
        return self._ping_token

    def pong(self, token: int) -> float | None:
        """Return the round trip of the last ping; None when ``token`` does not answer it."""
        if token != self._ping_token or self._ping_answered:
            return None
        self._ping_answered = True
        self.suspected = False
        self.round_trip = self.last_received - self._ping_sent
        return self.round_trip

    def deadline(self) -> float:
        """Return the time at which to call ``check`` if nothing is received until then."""
        if self._probed > self.last_received:
            return min(self._probed + SUSPECT_SECONDS, self._life_deadline())
        return self._life_deadline()

    def _life_deadline(self) -> float:
        received = self.last_received
        since = self._pinged if self._pinged > received else received
        if self._busy_since is None:
            deadline = since + self._interval
        else:
            deadline = max(since, self._busy_since) + BUSY_SECONDS
        return min(deadline, self._challenge_ends) if self._challenged > received else deadline

    def check(self, now: float) -> Verdict:
        """Return what to do now; call again until it is WAIT."""
        if self._probed > self.last_received and now >= self._probed + SUSPECT_SECONDS:
            self._probed = float("-inf")
            self.suspected = True
            return Verdict.SUSPECT
        if now < self._life_deadline():
            return Verdict.WAIT
        if self._challenge_open and now >= self._challenge_ends:
            return Verdict.DEAD
        if not self._unanswered:
            self._misses = 0
        elif self._busy_since is not None and self._pinged >= self._busy_since:
            return Verdict.DEAD
        else:
            self._misses += 1
            if self._misses >= IDLE_MISSES:
                return Verdict.DEAD
        self._pinged = now
        return Verdict.PING
