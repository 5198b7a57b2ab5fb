"""The bank of limits: what all workers together may let in, of each limited key.

    worker -> bank   ``Need``    what was used, what is given back, and what is lacking
    bank -> worker   ``Grant``   what may be used without asking again, and what is left in all
    bank -> worker   recall      a key's name: another worker lacks what this one may have to spare

A bucket's level is that of the whole.  What is granted and not yet used is still in it, but is
promised (``Lease``): so no more is ever let in than the bucket has, and a grant that comes back
costs nothing.  A worker gets what it lacks as long as there is any.  Beyond that it gets at most
the 2 x workers-th part of the rest, which is nothing where a limit is small: the bank then decides
each time.  If the rest is promised to others, they are asked for it before a request is refused.

The bank is a value: messages and ``now`` in, messages out.  ``fabric_server.workers`` drives it.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from msgspec import Struct

from fabric_server.auth.rate_limits import MAX_DEBT_MINUTES
from protocol.token_bucket import TokenBucket

MAX_KEYS = 10_000
"""Keys remembered; of those with nothing promised the least recently used is forgotten first."""
MAX_LOOKED_AT = 64
RECALL_SECONDS = 0.05
"""How long a worker has to give back what another one lacks."""
ROUNDING = 1e-6


class Amounts(Struct, frozen=True, array_like=True):
    """An amount of each thing that may be limited."""

    requests: int = 0
    tokens: int = 0
    places: int = 0
    """Requests that may be under way at once."""


NOTHING = Amounts()


class KeyLimits(Struct, frozen=True, array_like=True):
    """The limits of a key; None is unlimited."""

    requests: int | None = None
    """A minute, as ``tokens``."""
    tokens: int | None = None
    places: int | None = None


class Need(Struct, frozen=True, array_like=True):
    """A worker's word on one key."""

    key: str
    limits: KeyLimits | None = None
    """None: the worker has nothing of the key."""
    used: Amounts = NOTHING
    """Since the last time, less the requests that were granted as lacking: those count as used from
    then on.  Places are not used up, but given back."""
    of_grant: int = 0
    """The used tokens that were granted; others have gone beyond the grant."""
    back: Amounts = NOTHING
    lacks: Amounts = NOTHING
    """Amounts that requests wait for."""
    more: Amounts = NOTHING
    """Amounts that the next moment will need, if it goes on so."""
    asks: bool = False
    """A ``Grant`` is awaited."""
    recalled: bool = False
    """Whether the message answers a recall."""


class Grant(Struct, frozen=True, array_like=True):
    """The answer to a ``Need`` that asks."""

    key: str
    granted: Amounts
    counted: int
    """The granted requests that count as used."""
    requests_left: float | None
    """The level of the whole; None where there is no limit."""
    tokens_left: float | None


class Reply(NamedTuple):
    """Messages for one worker."""

    holder: str
    grants: list[Grant]
    recalls: list[str]
    """Ids of keys."""


class Lease:
    """A worker's promises of one key."""

    __slots__ = ("places", "recalled", "requests", "tokens")

    def __init__(self) -> None:
        self.requests = self.tokens = self.places = 0
        self.recalled = False
        """The holder is asked to give back what it does not need, and has not answered."""

    def __bool__(self) -> bool:
        return bool(self.requests or self.tokens or self.places or self.recalled)

    def has(self, lacks: Amounts) -> bool:
        """Return whether something that is lacking may be here."""
        return bool(
            (lacks.requests and self.requests > 0)
            or (lacks.tokens and self.tokens > 0)
            or (lacks.places and self.places > 0)
        )


class _Ask:
    """A worker that awaits a grant."""

    __slots__ = ("holder", "lacks", "more", "until")

    def __init__(self, holder: str, need: Need) -> None:
        self.holder, self.lacks, self.more = holder, need.lacks, need.more
        self.until: float | None = None
        """The latest time of the answer; None before others are asked for what is lacking."""


class _Account:
    """One key: its buckets, and who has what of them."""

    __slots__ = ("asks", "key", "leases", "limits", "requests", "tokens")

    def __init__(self, key: str) -> None:
        self.key = key
        self.limits = KeyLimits()
        self.requests: TokenBucket | None = None
        self.tokens: TokenBucket | None = None
        self.leases: dict[str, Lease] = {}
        self.asks: deque[_Ask] = deque()

    def set_limits(self, limits: KeyLimits, now: float) -> None:
        """Apply changed limits; what was used of the former ones remains used."""
        if limits != self.limits:
            self.limits = limits
            self.requests = _resized(self.requests, limits.requests, now)
            self.tokens = _resized(self.tokens, limits.tokens, now)

    def settle(self, lease: Lease, need: Need, now: float) -> None:
        """Book what a worker has used and gives back."""
        used, back = need.used, need.back
        lease.requests = max(0, lease.requests - used.requests - back.requests)
        lease.tokens = max(0, lease.tokens - need.of_grant - back.tokens)
        lease.places = max(0, lease.places - back.places)
        if self.requests is not None:
            most = self.requests.level(now) - self.requests.capacity
            self.requests.take(max(used.requests, most), now)
        if self.tokens is not None:
            debt = self.tokens.level(now) + self.tokens.capacity * MAX_DEBT_MINUTES
            self.tokens.take(min(used.tokens, max(0.0, debt)), now)

    def free(self, now: float) -> Amounts:
        """Return what is promised to nobody; negative while more is promised than there is."""
        leases, places = self.leases.values(), self.limits.places
        return Amounts(
            _whole(self.requests, now) - sum(lease.requests for lease in leases),
            _whole(self.tokens, now) - sum(lease.tokens for lease in leases),
            0 if places is None else places - sum(lease.places for lease in leases),
        )

    def recall(self, lacks: Amounts, asker: str) -> Iterator[str]:
        """Yield the workers that are to be asked for what another one lacks."""
        for holder, lease in self.leases.items():
            if holder != asker and not lease.recalled and lease.has(lacks):
                lease.recalled = True
                yield holder

    def grant(self, ask: _Ask, share: int, now: float) -> Grant:
        """Promise what is lacking as far as it is there, and a share of what then remains."""
        free, lacks, more = self.free(now), ask.lacks, ask.more
        granted = Amounts(
            _granted(free.requests, lacks.requests, more.requests, share),
            _granted(free.tokens, lacks.tokens, more.tokens, share),
            _granted(free.places, lacks.places, more.places, share),
        )
        counted = min(lacks.requests, granted.requests)
        if self.requests is not None:
            self.requests.take(counted, now)
        lease = self.leases.setdefault(ask.holder, Lease())
        lease.requests += granted.requests - counted
        lease.tokens += granted.tokens
        lease.places += granted.places
        return Grant(
            self.key,
            granted,
            counted,
            None if self.requests is None else self.requests.level(now),
            None if self.tokens is None else self.tokens.level(now),
        )


class Bank:
    """The accounts of all keys.  ``most`` bounds those that are remembered."""

    def __init__(self, workers: int, most: int = MAX_KEYS) -> None:
        self._share = 2 * workers
        self._most = most
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        """The latest used last."""
        self._waiting: dict[str, _Account] = {}
        """Accounts with asks for which others were recalled."""

    def __repr__(self) -> str:
        return f"<Bank keys={len(self._accounts)} waiting={len(self._waiting)}>"

    @property
    def deadline(self) -> float | None:
        """The time at which ``handle_timer`` is to be called; None while nothing waits."""
        ends = [
            ask.until
            for account in self._waiting.values()
            for ask in account.asks
            if ask.until is not None
        ]
        return min(ends, default=None)

    def handle_needs(self, holder: str, needs: Sequence[Need], now: float) -> list[Reply]:
        """Take what a worker says; return what workers are to be told."""
        replies = _Replies()
        for need in needs:
            account = self._account(need)
            if account is None:
                continue
            if need.limits is not None:
                account.set_limits(need.limits, now)
            lease = account.leases.setdefault(holder, Lease())
            account.settle(lease, need, now)
            if need.recalled:
                lease.recalled = False
            if need.asks:
                account.asks.append(_Ask(holder, need))
            if need.used.tokens and account.free(now).tokens < 0:
                # What was promised to others is spent: only requests under way may go beyond.
                for other in account.recall(Amounts(tokens=1), holder):
                    replies.of(other).recalls.append(account.key)
            self._decide(account, replies, now)
            if not lease and holder in account.leases:
                del account.leases[holder]
        return replies.all()

    def handle_timer(self, now: float) -> list[Reply]:
        """Answer without those that have not given back in time."""
        replies = _Replies()
        for account in tuple(self._waiting.values()):
            self._decide(account, replies, now)
        return replies.all()

    def forget(self, holder: str, now: float) -> list[Reply]:
        """Book the end of a worker: its places are free again.

        The rest of its grants counts as used, since it may have used it and not said so.
        """
        replies = _Replies()
        for account in tuple(self._accounts.values()):
            lease = account.leases.pop(holder, None)
            account.asks = deque(ask for ask in account.asks if ask.holder != holder)
            if lease is not None:
                lost = Amounts(lease.requests, lease.tokens)
                account.settle(lease, Need(account.key, used=lost), now)
            self._decide(account, replies, now)
        return replies.all()

    def _decide(self, account: _Account, replies: _Replies, now: float) -> None:
        """Answer the asks of a key, in order, up to one for which others must give back first."""
        while account.asks:
            ask = account.asks[0]
            free = account.free(now)
            lacks = Amounts(
                max(0, ask.lacks.requests - max(0, free.requests)),
                max(0, ask.lacks.tokens - max(0, free.tokens)),
                max(0, ask.lacks.places - max(0, free.places)),
            )
            if lacks != NOTHING and ask.until is None:
                ask.until = now + RECALL_SECONDS
                for other in account.recall(lacks, ask.holder):
                    replies.of(other).recalls.append(account.key)
            if lacks != NOTHING and ask.until is not None and now < ask.until:
                leases = account.leases.items()
                if any(one.recalled for other, one in leases if other != ask.holder):
                    self._waiting[account.key] = account
                    return
            account.asks.popleft()
            replies.of(ask.holder).grants.append(account.grant(ask, self._share, now))
        self._waiting.pop(account.key, None)

    def _account(self, need: Need) -> _Account | None:
        account = self._accounts.get(need.key)
        if account is not None:
            self._accounts.move_to_end(need.key)
            return account
        if need.limits is None:
            return None
        account = self._accounts[need.key] = _Account(need.key)
        if len(self._accounts) > self._most:
            oldest = list(islice(self._accounts.items(), MAX_LOOKED_AT))
            idle = (key for key, one in oldest if not (one.leases or one.asks))
            forgotten = next(idle, oldest[0][0])
            del self._accounts[forgotten]
            self._waiting.pop(forgotten, None)
        return account


class _Replies:
    """Replies that are being collected, by worker."""

    def __init__(self) -> None:
        self._by_holder: dict[str, Reply] = {}

    def of(self, holder: str) -> Reply:
        reply = self._by_holder.get(holder)
        if reply is None:
            reply = self._by_holder[holder] = Reply(holder, [], [])
        return reply

    def all(self) -> list[Reply]:
        return list(self._by_holder.values())


def _whole(bucket: TokenBucket | None, now: float) -> int:
    return 0 if bucket is None else math.floor(bucket.level(now) + ROUNDING)


def _granted(free: int, lacks: int, more: int, share: int) -> int:
    free = max(0, free)
    needed = min(lacks, free)
    return needed + min(more, (free - needed) // share)


def _resized(bucket: TokenBucket | None, limit: int | None, now: float) -> TokenBucket | None:
    if limit is None:
        return None
    resized = TokenBucket(float(limit), limit / 60.0, now)
    if bucket is not None:
        resized.take(bucket.capacity - bucket.level(now), now)
    return resized
