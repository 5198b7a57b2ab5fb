"""Authentication by several servers that share one cache."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric_server.auth.authenticator import DEFAULT_TIMES, AuthenticatorSettings, KeyAuthenticator
from fabric_server.auth.keys import Key, NewKey, key_of, mint
from fabric_server.dialects.errors import ApiError
from fabric_server.gateway.options import allowed_priority
from fabric_server.routing.criteria import Priority
from fabric_server.storage.cached_keys import name_of
from fabric_server.storage.memory import MemoryCache
from fabric_server.storage.rows import Changes, KeyRow
from runtime.errors import BackendError
from tests.contracts.samples import NOON
from tests.keys import mint_with
from tests.server.auth.fakes import Clock, Forgetful, Keys, refusal, revoked

# ── one cache, several servers ────────────────────────────────────────────────────────────────


async def test_a_server_that_began_after_a_revocation_believes_no_row_from_before(
    cache: MemoryCache, clock: Clock
) -> None:
    new, other = mint("laptop", now=NOON), mint("other", now=NOON)
    keys = Keys(new, other)
    await KeyAuthenticator(keys, cache, clock=clock).authenticate(new.text)
    keys.rows[new.row.hash] = revoked(new)
    keys.revision_at_open += 1
    late = KeyAuthenticator(keys, cache, clock=clock)
    assert (await refusal(late, new.text)).status == 401
    await late.authenticate(other.text)
    asked = keys.asked
    await KeyAuthenticator(keys, cache, clock=clock).authenticate(
        other.text
    )  # begun at the same revision
    assert keys.asked == asked


async def test_what_another_release_keeps_of_a_key_is_not_believed(clock: Clock) -> None:
    """It may know of no limits, and the key has some."""
    new = mint_with("laptop", now=NOON, requests_per_minute=5)
    cache = MemoryCache(clock=clock)
    await KeyAuthenticator(Keys(new), cache, clock=clock).authenticate(new.text)
    value = await cache.get(name_of(new.row.hash))
    assert value is not None
    other = MemoryCache(clock=clock)
    without = value.replace(b"requests_per_minute", b"something_different")
    await other.set(f"key:{new.row.hash.hex()}", without, 60.0)  # as it was called there
    key = await KeyAuthenticator(Keys(new), other, clock=clock).authenticate(new.text)
    assert key.requests_per_minute == 5


def test_a_cached_key_without_a_priority_has_none_above_medium() -> None:
    """Releases before this one write such values, and those after it may write other names."""
    row = mint_with("laptop", now=NOON, priority="high").row
    fields = msgspec.structs.asdict(row)
    del fields["priority"], fields["requests_at_once"]
    before = msgspec.msgpack.decode(msgspec.msgpack.encode(fields), type=KeyRow)
    assert (key_of(before).priority, key_of(before).requests_at_once) == ("medium", None)
    assert allowed_priority(Priority.HIGH, key_of(row).priority) == Priority.HIGH
    for name in ("medium", "", "HIGH", "highest"):
        strange = key_of(msgspec.structs.replace(row, priority=name))
        assert allowed_priority(Priority.HIGH, strange.priority) == Priority.MEDIUM


async def test_a_value_the_cache_kept_too_late_ends_when_it_would_have(clock: Clock) -> None:
    new = mint("laptop", now=NOON)
    keys = Keys(new)
    cache = MemoryCache(clock=clock)
    await KeyAuthenticator(keys, cache, clock=clock).authenticate(new.text)
    value = await cache.get(name_of(new.row.hash))
    assert value is not None
    keys.rows[new.row.hash] = revoked(new)
    clock.now += 301
    await cache.set(name_of(new.row.hash), value, 300)  # a Redis that had been stopped
    assert (await refusal(KeyAuthenticator(keys, cache, clock=clock), new.text)).status == 401


async def test_between_servers_whose_clocks_are_wrong_revisions_count(
    cache: MemoryCache, clock: Clock
) -> None:
    new = mint("laptop", now=NOON)
    keys, ahead = Keys(new), Clock()
    ahead.now += 60
    await KeyAuthenticator(keys, cache, clock=ahead).authenticate(new.text)
    keys.rows[new.row.hash] = revoked(new)
    keys.revision_at_open += 1
    clock.now += 25
    late = KeyAuthenticator(keys, cache, clock=clock)
    clock.now += 15  # by now the value looks as if it had been read after that
    assert (await refusal(late, new.text)).status == 401


async def test_a_value_from_the_far_future_is_not_believed(clock: Clock) -> None:
    new = mint("laptop", now=NOON)
    keys, cache = Keys(new), MemoryCache(clock=clock)
    ahead = Clock()
    ahead.now += 3600
    await KeyAuthenticator(keys, cache, clock=ahead).authenticate(new.text)
    await KeyAuthenticator(keys, cache, clock=clock).authenticate(new.text)
    assert keys.asked == 2


async def test_what_was_cached_before_everything_changed_is_not_believed(
    cache: MemoryCache, clock: Clock
) -> None:
    gone = mint("gone", now=NOON)
    keys = Keys(gone)
    keys.revision_at_open = 50
    authenticator = KeyAuthenticator(keys, cache, clock=clock)
    await KeyAuthenticator(keys, cache, clock=clock).authenticate(gone.text)
    keys.rows.clear()
    authenticator.on_changes(Changes(20, True, []))
    assert (await refusal(authenticator, gone.text)).status == 401
    await cache.set(name_of(gone.row.hash), b"", 1)
    await KeyAuthenticator(Keys(gone), cache, clock=clock).authenticate(gone.text)
    keys.revision_at_open = 20  # and it has been written by one who has not noticed yet
    assert (await refusal(KeyAuthenticator(keys, cache, clock=clock), gone.text)).status == 401


async def test_when_more_is_told_than_is_kept_the_cache_is_not_believed(
    cache: MemoryCache, clock: Clock
) -> None:
    new = [mint(f"k{n}", now=NOON) for n in range(4)]
    keys = Keys(*new)
    await KeyAuthenticator(keys, cache, clock=clock).authenticate(new[0].text)
    authenticator = KeyAuthenticator(
        keys, cache, clock=clock, settings=AuthenticatorSettings(max_keys=3)
    )
    for n, one in enumerate(new):
        keys.rows[one.row.hash] = revoked(one)
        authenticator.on_changes(Changes(n + 2, False, [revoked(one)]))
    assert (await refusal(authenticator, new[0].text)).status == 401


async def test_a_key_revoked_while_the_store_fails_is_not_used_on(clock: Clock) -> None:
    new = mint("laptop", now=NOON)
    keys = Keys(new)
    authenticator = KeyAuthenticator(keys, Forgetful(), clock=clock)
    await authenticator.authenticate(new.text)
    clock.now += 301
    keys.gate.clear()
    keys.entered.clear()
    keys.away = True
    asking = asyncio.create_task(authenticator.authenticate(new.text))
    await keys.entered.wait()
    authenticator.on_changes(Changes(2, False, [revoked(new)]))
    keys.gate.set()
    await asyncio.wait([asking])
    error = asking.exception()
    assert isinstance(error, ApiError)
    assert error.status == 401


async def test_a_cache_that_is_away_is_told_of_until_it_is_back(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    class Flaky(MemoryCache):
        away = False

        async def get(self, name: str) -> bytes | None:
            if self.away:
                raise BackendError("gone")
            return await super().get(name)

    new = [mint(f"k{n}", now=NOON) for n in range(4)]
    cache = Flaky(clock=clock)
    authenticator = KeyAuthenticator(Keys(*new), cache, clock=clock)
    await authenticator.authenticate(new[0].text)
    assert authenticator.cache_problem is None
    cache.away = True
    for one in new[1:3]:
        await authenticator.authenticate(one.text)
    assert authenticator.cache_problem == "gone"
    cache.away = False
    await authenticator.authenticate(new[3].text)
    assert authenticator.cache_problem is None
    assert [r.message for r in caplog.records] == [
        "the cache is away",
        "the cache is back",
    ]


async def test_a_cache_that_hangs_is_waited_for_once(clock: Clock) -> None:
    class Hanging:
        entered = 0

        async def get(self, name: str) -> bytes | None:
            self.entered += 1
            await asyncio.Event().wait()
            return None

        async def set(self, name: str, value: bytes, seconds: float) -> None:
            self.entered += 1
            await asyncio.Event().wait()

    new, cache = mint("laptop", now=NOON), Hanging()
    authenticator = KeyAuthenticator(
        Keys(new),
        cache,
        clock=clock,
        settings=AuthenticatorSettings(times=replace(DEFAULT_TIMES, cache_seconds=0.01)),
    )
    await authenticator.authenticate(new.text)
    assert cache.entered == 1
    assert authenticator.cache_problem == "it does not answer"


class World:
    """A store, a cache that may keep values late, and two servers, all moved by hand.

    Everything that a server waits for stands in ``gates`` until it is let go.
    """

    def __init__(self) -> None:
        self.now = NOON
        self.new = [mint(f"k{n}", now=NOON) for n in range(3)]
        self.rows = {one.row.hash: one.row for one in self.new[:2]}
        self.revision = 1
        self.changed_at = dict.fromkeys(self.rows, 1)
        self.backup = (dict(self.rows), dict(self.changed_at), self.revision)
        self.values: dict[str, tuple[bytes, float]] = {}
        self.late: list[tuple[str, bytes, float]] = []
        self.gates: list[asyncio.Future[None]] = []
        self.servers = [OneOfSeveral(self, skew) for skew in (-12.0, 12.0)]

    def change(self, row: KeyRow) -> None:
        for server in self.servers:  # they look far more often than revisions are made up for
            if server.since > self.revision:
                server.look()
        self.revision += 1
        self.rows[row.hash] = row
        self.changed_at[row.hash] = self.revision

    async def gate(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self.gates.append(future)
        await future

    async def settle(self) -> None:
        for _ in range(12):  # as many steps as there are layers
            await asyncio.sleep(0)

    async def let_go(self, which: int) -> None:
        gate = self.gates.pop(which % len(self.gates))
        if not gate.done():
            gate.set_result(None)
        await self.settle()

    async def let_all_go(self) -> None:
        await self.settle()
        while self.gates:
            await self.let_go(0)

    def keep_late(self, which: int) -> None:
        name, value, seconds = self.late.pop(which % len(self.late))
        self.values[name] = (value, self.now + seconds)

    def put_back(self) -> None:
        for server in self.servers:  # who looks twice a second has seen what was last changed
            server.look()
        rows, changed_at, self.revision = self.backup
        self.rows, self.changed_at = dict(rows), dict(changed_at)
        # What cached.py says is left: read in the half second before the backup's revision passed.
        fits = self._fits
        self.values = {name: kept for name, kept in self.values.items() if fits(kept[0])}
        self.late = [kept for kept in self.late if fits(kept[1])]

    def _fits(self, value: bytes) -> bool:
        row, as_of, _, _ = msgspec.msgpack.decode(value)
        if as_of != self.revision:
            return True
        known = row is not None and self.rows.get(msgspec.convert(row, KeyRow).hash)
        return bool(known) and known == msgspec.convert(row, KeyRow)


class OneOfSeveral:
    """A server process, and what it asks."""

    def __init__(self, world: World, skew: float) -> None:
        self.world = world
        self.skew = skew
        self.tasks: list[tuple[NewKey, asyncio.Task[Key]]] = []
        self.start()

    def start(self) -> None:
        for _, task in self.tasks:
            task.cancel()
        self.tasks.clear()
        self.since = self.revision_at_open = self.world.revision
        self.authenticator = KeyAuthenticator(
            self,
            self,
            clock=lambda: self.world.now + self.skew,
            settings=AuthenticatorSettings(
                max_keys=2, times=replace(DEFAULT_TIMES, cache_seconds=5.0)
            ),
        )

    async def key_by_hash(self, digest: bytes) -> KeyRow | None:
        await self.world.gate()
        row = self.world.rows.get(digest)
        await self.world.gate()
        return row

    async def get(self, name: str) -> bytes | None:
        value, until = self.world.values.get(name, (None, 0.0))
        await self.world.gate()
        return value if self.world.now < until else None

    async def set(self, name: str, value: bytes, seconds: float) -> None:
        self.world.late.append((name, value, seconds))

    def ask(self, new: NewKey) -> None:
        self.tasks.append((new, asyncio.create_task(self.authenticator.authenticate(new.text))))

    def look(self) -> None:
        world = self.world
        everything = world.revision < self.since
        after = 0 if everything else self.since
        rows = [row for digest, row in world.rows.items() if world.changed_at[digest] > after]
        if world.revision != self.since:
            self.since = world.revision
            self.authenticator.on_changes(Changes(self.since, everything, rows))

    def refuses(self, new: NewKey) -> bool:
        """It has seen that the key is not good any more."""
        if self.since != self.world.revision:
            changed = self.world.changed_at.get(new.row.hash, self.world.revision)
            if self.since > self.world.revision or changed > self.since:
                return False
        row = self.world.rows.get(new.row.hash)
        return row is None or row.revoked_at is not None

    def check(self) -> None:
        for new in self.world.new:
            if self.refuses(new):
                assert self.authenticator.cached(new.text) is None
        for new, task in list(self.tasks):
            if task.done():
                self.tasks.remove((new, task))
                if task.exception() is None:
                    assert not self.refuses(new)


ANY = st.integers(0, 5)
USES = st.tuples(st.sampled_from(["use", "use, kept late", "ask", "keep, use"]), ANY)
ENDS = st.tuples(
    st.sampled_from(["revoke", "revoke all", "revoke, all look", "put back", "look", "start"]), ANY
)
WAITS = st.tuples(st.just("wait"), st.sampled_from([1, 20, 40, 200, 290, 345]))
PARTS = st.tuples(
    st.sampled_from(["go", "go all", "keep", "make", "back up", "look", "start"]), ANY
)
FEW = st.lists(st.one_of(USES, ENDS, WAITS, PARTS), max_size=2)
# What any flaw needs, with anything between: a row is read, it comes to an end, time passes.
STORY = st.tuples(FEW, USES, FEW, ENDS, FEW, WAITS)
STORIES = st.lists(STORY, min_size=1, max_size=2).map(
    lambda stories: [
        step
        for story in stories
        for part in story
        for step in (part if isinstance(part, list) else [part])
    ]
)


async def play(steps: list[tuple[str, int]]) -> None:
    world = World()
    for step, number in steps:
        new = world.new[
            0 if not 4 <= number <= 5 else number - 3
        ]  # one key has the most adventures
        server = world.servers[number % 2]
        match step:
            case "make":
                if new.row.hash not in world.rows:
                    world.change(new.row)
            case "revoke" | "revoke all" | "revoke, all look":
                for one in world.new if step == "revoke all" else [new]:
                    if one.row.hash in world.rows:
                        world.change(revoked(one))
                if step == "revoke, all look":
                    for other in world.servers:
                        other.look()
            case "ask" | "use" | "use, kept late" | "keep, use":
                while step == "keep, use" and world.late:
                    world.keep_late(0)
                server.ask(new)
                await world.settle()
                if step != "ask":
                    await world.let_all_go()
                while step == "use" and world.late:
                    world.keep_late(0)
            case "look":
                server.look()
            case "start":
                server.start()
                await world.settle()
            case "go" if world.gates:
                await world.let_go(number)
            case "keep" if world.late:
                world.keep_late(number)
            case "go all":
                await world.let_all_go()
            case "wait":
                if number > 1:  # nobody waits so long for the store
                    await world.let_all_go()
                world.now += number
            case "back up":
                world.backup = (dict(world.rows), dict(world.changed_at), world.revision)
            case "put back":
                await world.let_all_go()
                world.put_back()
        for each in world.servers:
            each.check()
    await world.let_all_go()
    while world.late:
        world.keep_late(0)
    for each in world.servers:
        for new in world.new:
            each.ask(new)
        await world.let_all_go()
        each.check()
        each.start()
    await world.settle()


@settings(max_examples=500, deadline=None)
@given(steps=STORIES)
def test_a_revoked_key_is_never_accepted_by_who_knows_or_began_later(
    steps: list[tuple[str, int]],
) -> None:
    asyncio.run(play(steps))
