"""A worker's part of the limits that hold for all workers: what the bank has granted it.

    leases = Leases(send, clock)
    taken = leases.take(key)          # headers at once, or a future of them; ApiError (429)
    leases.charge(key, tokens)        # when the request is over, and its tokens are known
    leases.leave(key)

A key with a grant is decided at once.  One without waits for an answer of the bank, together with
all that has come since the last one.  What is used, and what is needed next, is told twice a second
and whenever a grant runs low; a key that is not used for so long gives all back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from fabric_server.auth.bank import NOTHING, Amounts, Grant, KeyLimits, Need
from fabric_server.auth.keys import Key
from fabric_server.auth.rate_limits import (
    AT_ONCE_RETRY,
    ENOUGH,
    MAX_DEBT_MINUTES,
    Bucket,
    Headers,
)
from fabric_server.dialects import errors
from fabric_server.dialects.errors import ApiError

PERIOD = 0.5
MAX_WAIT = 1.0
"""Seconds after which a request is refused for which the bank gives no answer."""
FULL_SECONDS = 0.005
"""How long a key is known to have all its places taken: the end of a request elsewhere is not
told."""
LEAST_WAIT = 0.05
"""The time to come back after, where what is left is promised to a worker that does not answer."""
HEADROOM = 4
"""Requests more than twice those of the last moment that a key is expected to send."""

Taken = asyncio.Future[Headers]


class _Part:
    """A worker's part of one of a key's buckets, and what it knows of the whole."""

    __slots__ = ("before", "bucket", "low", "recent", "spare", "used")

    def __init__(self) -> None:
        self.bucket: Bucket | None = None
        """A copy of the bank's bucket, without what others have used just now."""
        self.spare = 0
        self.used = 0
        """Not told yet."""
        self.recent = self.before = 0
        """Used in this period, and in the last one."""
        self.low = -1
        """The rest of the grant at which more is asked for."""

    def limit(self, what: str, limit: int | None, now: float) -> None:
        if limit is None:
            self.bucket = None
        elif self.bucket is None or self.bucket.limit != limit:
            self.bucket = Bucket(what, limit, now)

    @property
    def there(self) -> bool:
        return self.bucket is None or self.spare > 0

    def add(self, granted: int, counted: int, left: float | None, now: float) -> None:
        self.spare += granted
        self.used -= counted
        self.low = self.spare // 4 if self.spare > HEADROOM else -1
        if self.bucket is not None and left is not None:
            tokens = self.bucket.tokens
            tokens.take(tokens.level(now) - left + self.used, now)

    def demand(self) -> int:
        """Return what is lacking for the next moment, if it goes on as the last one."""
        expected = 2 * max(self.recent, self.before) + HEADROOM
        return 0 if self.bucket is None else max(0, expected - self.spare)

    def give_back(self, keep: int = 0) -> int:
        back = max(0, self.spare - keep)
        self.spare -= back
        return back

    def state(self) -> int:
        """Return what was used since the last time."""
        used, self.used = self.used, 0
        return used

    def turn(self) -> None:
        self.before, self.recent = self.recent, 0


class _Held:
    """A worker's part of one key's limits.

    ``in_use`` counts places; ``asked`` the waiting requests whose answer is on its way.
    """

    __slots__ = (
        *("asked", "asked_for", "asking", "changed", "full_until", "in_use", "key", "limits"),
        *("of_grant", "places", "recalled", "requests", "since", "tokens", "waiting"),
    )

    def __init__(self, key: Key, now: float) -> None:
        self.limits = KeyLimits()
        self.requests, self.tokens = _Part(), _Part()
        self.of_grant = 0
        self.places = self.in_use = 0
        self.waiting: deque[tuple[Taken, Key]] = deque()
        self.since = 0.0
        """The time when the bank was asked."""
        self.asked = 0
        self.asked_for = NOTHING
        self.asking = self.recalled = False
        self.full_until = 0.0
        self.set_key(key, now)
        self.changed = False

    def set_key(self, key: Key, now: float) -> None:
        self.key = key
        limits = KeyLimits(key.requests_per_minute, key.tokens_per_minute, key.requests_at_once)
        if limits != self.limits:
            self.limits = limits
            self.requests.limit("requests", limits.requests, now)
            self.tokens.limit("tokens", limits.tokens, now)
            self.changed = True  # of a lower limit, there would be less here

    @property
    def suffices(self) -> bool:
        """One more request may begin."""
        place = self.limits.places is None or self.places > 0
        return place and self.requests.there and self.tokens.there

    @property
    def idle(self) -> bool:
        """The key was not used in this period."""
        active = self.requests.recent or self.tokens.recent or self.waiting or self.asking
        return not active

    @property
    def quiet(self) -> bool:
        """The bank need not be told of the key."""
        parts = (self.requests, self.tokens)
        return not (self.recalled or self.places or any(one.spare or one.used for one in parts))

    def use(self, key: Key, now: float) -> Headers:
        """Let one request of the key in."""
        requests = self.requests
        requests.recent += 1
        if requests.bucket is not None:
            requests.spare -= 1
            requests.used += 1
            requests.bucket.tokens.take(1, now)
        if key.requests_at_once is not None:
            self.places -= 1
            self.in_use += 1
        return self.headers(now)

    def undo(self, key: Key, now: float) -> None:
        """Have a request not be counted that was let in."""
        if self.requests.bucket is not None:
            self.requests.spare += 1
            self.requests.used -= 1
            self.requests.bucket.tokens.take(-1, now)
        self.leave(key)

    def leave(self, key: Key) -> None:
        """Note the end of a request with the key, as it was then."""
        if key.requests_at_once is not None:
            self.in_use -= 1
            self.places += 1

    def headers(self, now: float) -> Headers:
        buckets = (self.requests.bucket, self.tokens.bucket)
        return [header for one in buckets if one is not None for header in one.headers(now)]

    def refusal(self, now: float) -> ApiError | None:
        """Return why no request may begin, as far as is known here."""
        if self.limits.places is not None and now < self.full_until:
            return errors.too_many_at_once(self.limits.places, AT_ONCE_RETRY)
        for part in (self.requests, self.tokens):
            bucket = part.bucket
            if bucket is not None and bucket.tokens.level(now) < ENOUGH:
                wait = bucket.tokens.seconds_until(1, now)
                return errors.rate_limited(bucket.what, bucket.limit, wait, self.headers(now))
        return None

    def denied(self, now: float) -> ApiError | None:
        """Return the refusal of a request that the bank was asked for; None if something is lacking
        that was there when it was asked."""
        asked_for = self.asked_for
        place = self.limits.places is None or self.places > 0
        if not (
            (asked_for.places and not place)
            or (asked_for.requests and not self.requests.there)
            or (asked_for.tokens and not self.tokens.there)
        ):
            return self.refusal(now)
        if self.limits.places is not None and self.places <= 0:
            self.full_until = now + FULL_SECONDS
        if refusal := self.refusal(now):
            return refusal
        part = self.tokens if self.requests.there else self.requests
        assert part.bucket is not None, "what is lacking has a limit"
        what, limit = part.bucket.what, part.bucket.limit
        return errors.rate_limited(what, limit, LEAST_WAIT, self.headers(now))

    def lacks(self) -> Amounts:
        """Return what the waiting requests need beyond what is here."""
        count, limits = len(self.waiting), self.limits
        return Amounts(
            0 if limits.requests is None else max(0, count - self.requests.spare),
            0 if limits.tokens is None or not count else max(0, 1 - self.tokens.spare),
            0 if limits.places is None else max(0, count - self.places),
        )

    def more(self) -> Amounts:
        """Return what the next moment will need beyond that."""
        more = 0 if self.limits.places is None else max(0, self.in_use - self.places)
        return Amounts(self.requests.demand(), self.tokens.demand(), more)

    def give_back(self) -> Amounts:
        """Give back what nobody waits for."""
        keep = len(self.waiting)
        back = max(0, self.places - keep)
        self.places -= back
        return Amounts(self.requests.give_back(keep), self.tokens.give_back(min(keep, 1)), back)

    def state(self, *, ask: bool, now: float, all_back: bool = False) -> Need:
        """Return what the bank is to be told."""
        back = self.give_back() if all_back or self.recalled or self.changed else NOTHING
        asks = (ask or bool(self.waiting)) and not self.asking
        need = Need(
            self.key.id,
            self.limits,
            Amounts(self.requests.state(), self.tokens.state()),
            self.of_grant,
            back,
            self.lacks() if asks else NOTHING,
            NOTHING if not asks or self.recalled else self.more(),
            asks,
            self.recalled,
        )
        self.of_grant, self.recalled, self.changed = 0, False, False
        if asks:
            self.asking, self.asked, self.since = True, len(self.waiting), now
            self.asked_for = need.lacks
        return need


class Leases:
    """The grants of all keys, within one worker.  Needs a running loop; ``run`` it."""

    def __init__(self, send: Callable[[Sequence[Need]], None], clock: Callable[[], float]) -> None:
        """``send`` tells the bank, which answers by ``on_answer``."""
        self._send = send
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._held: dict[str, _Held] = {}
        """Leases by the ids of keys that were used just now, or have requests under way."""
        self._low: dict[str, bool] = {}
        """Keys of which the bank is to be told in this turn, and whether more is needed."""

    def __repr__(self) -> str:
        return f"<Leases keys={len(self._held)}>"

    def take(self, key: Key) -> Headers | Taken:
        """Count one request; return the headers about the limits, or a future of them.

        Raises ``ApiError`` (429) when the key is over a limit, as the future may do.
        """
        now = self._clock()
        held = self._of(key, now)
        if held.suffices and not held.waiting:
            headers = held.use(key, now)
            if held.requests.spare == held.requests.low:
                self._soon(held, ask=True)
            return headers
        if refusal := held.refusal(now):
            raise refusal
        taken: Taken = self._loop.create_future()
        held.waiting.append((taken, key))
        if not held.asking:
            self._soon(held, ask=True)
        return taken

    async def admit(self, key: Key) -> Headers:
        """Count one request, as ``take``, and wait for the bank if need be."""
        taken = self.take(key)
        if not isinstance(taken, asyncio.Future):
            return taken
        try:
            return await taken
        except asyncio.CancelledError:
            if taken.done() and not taken.cancelled() and taken.exception() is None:
                self._held[key.id].undo(key, self._clock())
            raise

    async def must_wait(self, key: Key) -> float:
        """Return the seconds for which the key's requests are refused; 0 when they aren't."""
        try:
            await self.admit(key)
        except ApiError as refusal:
            return refusal.retry_after or AT_ONCE_RETRY
        self._held[key.id].undo(key, self._clock())
        return 0.0

    def charge(self, key: Key, tokens: int) -> None:
        """Count the tokens of a request that is over."""
        if key.tokens_per_minute is None or not tokens:
            return
        now = self._clock()
        held = self._held.get(key.id) or self._of(key, now)
        part = held.tokens
        if part.bucket is None:  # the limit was taken away meanwhile
            return
        of_grant = min(tokens, part.spare)
        part.spare -= of_grant
        held.of_grant += of_grant
        part.used += tokens
        part.recent += tokens
        most = part.bucket.tokens.level(now) + part.bucket.limit * MAX_DEBT_MINUTES
        part.bucket.tokens.take(min(tokens, max(0.0, most)), now)
        if part.spare <= max(part.low, 0):
            part.low = -1
            self._soon(held, ask=True)

    def leave(self, key: Key) -> None:
        """Note the end of a request that was let in."""
        held = self._held.get(key.id)
        if held is not None:
            held.leave(key)
            if held.waiting and not held.asking:
                self._soon(held, ask=True)

    # ── the bank ──────────────────────────────────────────────────────────────────────────────

    def on_answer(self, grants: Sequence[Grant], recalls: Sequence[str]) -> None:
        """Take the bank's answers: ``recalls`` are keys of which another worker lacks something."""
        now = self._clock()
        unknown = []
        for grant in grants:
            held = self._held.get(grant.key)
            if held is not None:
                self._serve(held, grant, now)
            else:  # it came too late
                unused = Amounts(requests=-grant.counted)
                unknown.append(Need(grant.key, used=unused, back=grant.granted))
        for key_id in recalls:
            held = self._held.get(key_id)
            if held is None:
                unknown.append(Need(key_id, recalled=True))
            else:
                held.recalled = True
                self._soon(held, ask=False)
        if unknown:
            self._send(unknown)

    def _serve(self, held: _Held, grant: Grant, now: float) -> None:
        granted = grant.granted
        held.requests.add(granted.requests, grant.counted, grant.requests_left, now)
        held.tokens.add(granted.tokens, 0, grant.tokens_left, now)
        held.places += granted.places
        asked, held.asked, held.asking = held.asked, 0, False
        waiting, held.waiting = held.waiting, deque()
        for number, (taken, key) in enumerate(waiting):
            if taken.done():  # its client has hung up
                continue
            if held.suffices:
                taken.set_result(held.use(key, now))
            elif refusal := held.denied(now) if number < asked else held.refusal(now):
                taken.set_exception(refusal)
            else:
                held.waiting.append((taken, key))
        if held.waiting:
            self._soon(held, ask=True)

    def tell(self) -> None:
        """Tell the bank of all keys: what was used, and what the next moment needs."""
        now = self._clock()
        needs = []
        for key_id, held in tuple(self._held.items()):
            if held.asking:
                self._check(held, now)
            idle = held.idle
            if not (idle and held.quiet):
                needs.append(held.state(ask=not idle, now=now, all_back=idle))
            held.requests.turn()
            held.tokens.turn()
            if idle and not held.in_use:
                del self._held[key_id]
        self._low.clear()
        if needs:
            self._send(needs)

    def close(self) -> None:
        """Give all back: this worker ends."""
        now = self._clock()
        needs = [held.state(ask=False, now=now, all_back=True) for held in self._held.values()]
        if needs:
            self._send(needs)

    async def run(self) -> None:
        """Tell the bank twice a second."""
        while True:
            await asyncio.sleep(PERIOD)
            self.tell()

    def _check(self, held: _Held, now: float) -> None:
        if now - held.since < MAX_WAIT:
            return
        while held.waiting:
            taken, _ = held.waiting.popleft()
            if not taken.done():
                text = "The limits of this key can't be checked at the moment; retry in 1 s."
                taken.set_exception(errors.overloaded(text, 1.0))
        held.asked, held.asking = 0, False

    def _soon(self, held: _Held, *, ask: bool) -> None:
        if not self._low:
            self._loop.call_soon(self._tell_low)
        self._low[held.key.id] = ask or self._low.get(held.key.id, False)

    def _tell_low(self) -> None:
        low, self._low = self._low, {}
        now = self._clock()
        needs = [
            self._held[key_id].state(ask=ask, now=now)
            for key_id, ask in low.items()
            if key_id in self._held
        ]
        if needs:
            self._send(needs)

    def _of(self, key: Key, now: float) -> _Held:
        held = self._held.get(key.id)
        if held is None:
            held = self._held[key.id] = _Held(key, now)
        elif held.key is not key:
            held.set_key(key, now)
        return held
