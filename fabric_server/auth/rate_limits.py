"""Rate limits of keys: requests per minute as they arrive, tokens per minute once counted.

Each limit is a token bucket with a minute's worth that fills evenly, so that an idle key may send a
burst.  The cost of an answer is not known beforehand: a key may send requests while it has any
tokens left, and then waits until its debt is paid.  Buckets are full when the process starts.  Of
several workers, ``bank`` has the buckets, and ``leases`` each one's part.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from fabric_server.auth.keys import Key
from fabric_server.dialects import errors
from protocol.token_bucket import TokenBucket

MAX_KEYS = 10_000
"""Keys remembered; the least recently used is forgotten, and its buckets are full again."""

MAX_DEBT_MINUTES = 5.0
"""A key's debt of tokens is not more than it gets in so many minutes."""

AT_ONCE_RETRY = 1.0
"""Seconds after which a key may try again that has as many requests under way as it may have."""

ENOUGH = 1 - 1e-6
"""Tolerates rounding for a client that waited as long as Retry-After told it."""

Headers = list[tuple[bytes, bytes]]


class Bucket:
    """One limit of one key: ``limit`` of ``what`` ("requests" or "tokens") a minute."""

    __slots__ = ("_limit_header", "_names", "limit", "tokens", "what")

    def __init__(self, what: str, limit: int, now: float) -> None:
        self.what = what
        self.limit = limit
        self.tokens = TokenBucket(float(limit), limit / 60.0, now)
        self._limit_header = f"x-ratelimit-limit-{what}".encode(), b"%d" % limit
        self._names = tuple(f"x-ratelimit-{of}-{what}".encode() for of in ("remaining", "reset"))

    def headers(self, now: float) -> Headers:
        """Return OpenAI's three headers; ``reset`` is the time until the bucket is full again."""
        tokens = self.tokens
        left = tokens.level(now)
        remaining, reset = self._names
        return [
            self._limit_header,
            (remaining, b"%d" % max(0, int(left))),
            (reset, duration((self.limit - left) / tokens.per_second).encode()),
        ]


class RateLimits:
    """The buckets of all keys, within one process."""

    def __init__(self, clock: Callable[[], float], most: int = MAX_KEYS) -> None:
        self._clock = clock
        self._most = most
        self._buckets: OrderedDict[str, tuple[Bucket | None, Bucket | None]] = OrderedDict()
        """Buckets of requests and of tokens, by the key's id."""

    def take(self, key: Key) -> Headers:
        """Count one request; return the headers about the limits.

        Raises ``ApiError`` (429) when the key is over a limit.
        """
        now = self._clock()
        asked, _ = pair = self._of(key, now)
        for bucket in pair:
            if bucket is not None and bucket.tokens.level(now) < ENOUGH:
                wait, headers = bucket.tokens.seconds_until(1, now), _headers(pair, now)
                raise errors.rate_limited(bucket.what, bucket.limit, wait, headers)
        if asked is not None:
            asked.tokens.take(1, now)
        return _headers(pair, now)

    def must_wait(self, key: Key) -> float:
        """Return the seconds for which ``take`` would raise; 0 when it would not."""
        now = self._clock()
        pair = self._of(key, now)
        waits = [
            one.tokens.seconds_until(1, now)
            for one in pair
            if one is not None and one.tokens.level(now) < ENOUGH
        ]
        return max(waits, default=0.0)

    def charge(self, key: Key, tokens: int) -> None:
        """Count the tokens of a request that is over."""
        now = self._clock()
        _, spent = self._of(key, now)
        if spent is not None:
            most = spent.tokens.level(now) + spent.limit * MAX_DEBT_MINUTES
            spent.tokens.take(min(tokens, max(0.0, most)), now)

    def _of(self, key: Key, now: float) -> tuple[Bucket | None, Bucket | None]:
        asked, spent = pair = self._buckets.get(key.id, (None, None))
        most_asked, most_spent = key.requests_per_minute, key.tokens_per_minute
        if _limit(asked) != most_asked or _limit(spent) != most_spent:
            if _limit(asked) != most_asked:
                asked = None if most_asked is None else Bucket("requests", most_asked, now)
            if _limit(spent) != most_spent:
                spent = None if most_spent is None else Bucket("tokens", most_spent, now)
            pair = self._buckets[key.id] = asked, spent
            if len(self._buckets) > self._most:
                self._buckets.popitem(last=False)
        if pair != (None, None):
            self._buckets.move_to_end(key.id)
        return pair


def _limit(bucket: Bucket | None) -> int | None:
    return None if bucket is None else bucket.limit


def _headers(pair: tuple[Bucket | None, Bucket | None], now: float) -> Headers:
    return [header for bucket in pair if bucket is not None for header in bucket.headers(now)]


def duration(seconds: float) -> str:
    """Format a duration as OpenAI does: ``12ms``, ``1s``, ``6m0s``."""
    milliseconds = round(seconds * 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    whole, rest = divmod(milliseconds, 1000)
    if whole < 60:
        return f"{whole}.{rest:03d}".rstrip("0").rstrip(".") + "s"
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{left}s" if hours else f"{minutes}m{left}s"
