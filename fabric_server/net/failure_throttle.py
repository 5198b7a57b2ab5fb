"""Wrong keys and other wrong secrets: the answers to them are held back, by address.

    a valid secret     is answered at once, whatever else comes from its address
    a wrong one        is answered at once, up to ``burst`` from one address
    many wrong ones    are answered at ``per_second``, or at the latest after ``longest`` seconds

A connection answers one request after the other, so nobody can try more secrets than they have
connections, once per ``longest`` seconds.  Since an answer is held back only when the secret has
been found wrong, it does not matter how many users share an address.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, Protocol, get_args

from fabric_server.net.addresses import network_of, origin
from protocol.token_bucket import TokenBucket

log = logging.getLogger("fabric.keys")

Secret = Literal["api_key", "management_key", "invitation"]

LOG_SECONDS = 60.0
MAX_LINES = 50
"""Addresses that are logged one by one at a time; one more line has the others' sums."""


class Client(Protocol):
    """The sender of a request, as the throttle needs to know them."""

    @property
    def client_address(self) -> str: ...
    def suspect(self) -> None:
        """Report the client's connections as unwelcome, if nobody known comes from there."""

    async def pause(self, seconds: float) -> None:
        """Wait so long, or until the client has hung up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ThrottleLimits:
    """The number of wrong secrets that are answered at once, and the time that others wait."""

    burst: float = 30.0
    per_second: float = 0.5
    """Of one IPv4 address, or one /64 of IPv6."""
    burst_in_all: float = 600.0
    per_second_in_all: float = 10.0
    """Of all addresses together, as an attacker may have many."""
    longest: float = 5.0
    """Seconds for which an answer is held back at most."""
    addresses: int = 10_000
    """Addresses that are remembered: those with the latest wrong secrets."""

    def of_one(self, count: int) -> ThrottleLimits:
        """Return the limits of one of so many workers, each of which counts by itself."""
        return replace(
            self,
            burst=max(1.0, self.burst / count),
            per_second=self.per_second / count,
            burst_in_all=max(1.0, self.burst_in_all / count),
            per_second_in_all=self.per_second_in_all / count,
        )


class _Origin:
    """The wrong secrets of one address."""

    __slots__ = ("address", "bucket", "code", "held", "unlogged")

    def __init__(self, bucket: TokenBucket) -> None:
        self.bucket = bucket
        self.address = self.code = ""
        self.unlogged = self.held = 0


class FailureThrottle:
    """Counts wrong secrets; ``failures`` and ``held`` are metrics.  ``run`` writes the log."""

    def __init__(
        self,
        limits: ThrottleLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``clock`` gives monotonic seconds."""
        self.limits = limits = limits or ThrottleLimits()
        self.failures: Counter[str] = Counter(dict.fromkeys(get_args(Secret), 0))
        """Requests refused because of a wrong or missing secret, by its kind."""
        self.held: Counter[str] = Counter(dict.fromkeys(get_args(Secret), 0))
        """Of these, those whose answer was held back."""
        self._clock = clock
        self._all = TokenBucket(limits.burst_in_all, limits.per_second_in_all, clock())
        self._origins: OrderedDict[str, _Origin] = OrderedDict()
        """By address, the latest to send a wrong secret last."""
        self._forgotten: list[int] = [0, 0]
        """Addresses that had to be forgotten before they were logged, and their failures."""

    def __repr__(self) -> str:
        return f"<FailureThrottle addresses={len(self._origins)}>"

    async def hold(self, secret: Secret, code: str, client: Client) -> None:
        """Count a refusal with the error ``code``, and return when it may be answered."""
        if seconds := self.count(secret, code, client):
            await client.pause(seconds)

    def count(self, secret: Secret, code: str, client: Client) -> float:
        """Count a refusal; return the seconds for which the answer is to be held back."""
        now = self._clock()
        address = client.client_address
        found = self._origin(origin(address), now)
        found.address, found.code = address, code
        found.unlogged += 1
        self.failures[secret] += 1
        of_its_own = self._wait(found.bucket, now)
        if of_its_own:
            client.suspect()
        seconds = max(of_its_own, self._wait(self._all, now))
        if seconds:
            found.held += 1
            self.held[secret] += 1
        return seconds

    async def run(self) -> None:
        """Write the log every minute, and once more at the end."""
        try:
            while True:
                await asyncio.sleep(LOG_SECONDS)
                self.write_log()
        finally:
            self.write_log()

    def write_log(self) -> None:
        """Log what was counted since the last time: one line for each address, of the busiest."""
        counted = [found for found in self._origins.values() if found.unlogged]
        busiest = heapq.nlargest(MAX_LINES, counted, key=lambda found: found.unlogged)
        for found in busiest:
            log.info(
                "wrong keys refused",
                extra={
                    "address": network_of(found.address),
                    "count": found.unlogged,
                    "held_back": found.held,
                    "code": found.code,
                },
            )
        addresses, failures = self._forgotten
        addresses += len(counted) - len(busiest)
        failures += _sum(counted) - _sum(busiest)
        if addresses:
            log.info(
                "wrong keys refused from more addresses",
                extra={"addresses": addresses, "count": failures},
            )
        self._forgotten = [0, 0]
        for found in counted:
            found.unlogged = found.held = 0

    def _wait(self, bucket: TokenBucket, now: float) -> float:
        """Take a token; return the seconds until it would be there."""
        longest = self.limits.longest
        # A debt of more than the longest wait would only make the next honest mistake wait, too.
        if bucket.level(now) > 1 - longest * bucket.per_second:
            bucket.take(1, now)
            return bucket.seconds_until(0, now)
        return longest

    def _origin(self, key: str, now: float) -> _Origin:
        found = self._origins.get(key)
        if found is None:
            limits = self.limits
            found = self._origins[key] = _Origin(TokenBucket(limits.burst, limits.per_second, now))
            if len(self._origins) > limits.addresses:
                _, oldest = self._origins.popitem(last=False)
                if oldest.unlogged:
                    self._forgotten[0] += 1
                    self._forgotten[1] += oldest.unlogged
        else:
            self._origins.move_to_end(key)
        return found


def _sum(origins: Iterable[_Origin]) -> int:
    return sum(found.unlogged for found in origins)
