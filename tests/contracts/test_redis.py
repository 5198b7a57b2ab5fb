"""A cache in a real Redis: what it says when it is no use, and what its absence costs."""

from __future__ import annotations

import asyncio
import logging
import random
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from fabric_server.auth.authenticator import KeyAuthenticator
from fabric_server.auth.keys import NewKey, mint
from fabric_server.dialects.errors import ApiError
from fabric_server.storage.change_feed import ChangeFeed
from fabric_server.storage.connect import open_cache, open_store
from fabric_server.storage.interfaces import Cache
from fabric_server.storage.redis import CONNECTIONS, RedisCache, parse
from fabric_server.storage.rows import Changes, KeyRow
from fabric_server.storage.store import SqlStore
from runtime.errors import BackendError, Unreachable
from tests.contracts.conftest import cluster_url, sentinel_url
from tests.lab.backends import free_port, until
from tests.lab.redis_server import RedisCluster, RedisSentinel, RedisServer

PATIENCE = 20.0
"""Seconds after which a test has failed."""


class Keys:
    """A store that counts."""

    revision_at_open = 1

    def __init__(self, *new: NewKey) -> None:
        self.rows = {one.row.hash: one.row for one in new}
        self.asked = 0

    async def key_by_hash(self, digest: bytes) -> KeyRow | None:
        self.asked += 1
        return self.rows.get(digest)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Cache]:
    cache = await open_cache(url)
    try:
        yield cache
    finally:
        await cache.close()


@asynccontextmanager
async def answering(reply: bytes) -> AsyncIterator[str]:
    """The URL of somebody who answers so to whatever is asked, but to PING."""
    writers = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        while asked := await reader.read(4096):
            writer.write(b"+PONG\r\n" if b"PING" in asked else reply)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.close()
        await server.wait_closed()


async def until_well(cache: Cache) -> None:
    """Returns when it answers again."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                await cache.get("anything")
            except BackendError:
                await asyncio.sleep(0.05)  # nothing tells
            else:
                return


async def until_heard(cache: Cache) -> None:
    async with asyncio.timeout(PATIENCE):
        await cache.wait_for_notice()


async def problem_of(url: str) -> BackendError:
    with pytest.raises(BackendError) as caught:
        await open_cache(url)
    text = str(caught.value)
    assert "secret" not in text
    assert "\n" not in text
    assert text.startswith("cache")
    return caught.value


def new_key() -> NewKey:
    return mint("laptop", now=time.time())


# ── URLs ──────────────────────────────────────────────────────────────────────────────────────


def test_urls_say_who_and_where() -> None:
    place = parse("redis://joe:p%40ss@host/3")
    assert (place.kind, place.hosts, place.db) == ("", (("host", 6379),), 3)
    assert (place.user, place.password, place.tls) == ("joe", "p@ss", False)
    place = parse("rediss+sentinel://:secret@a,[::1]:7/main/2")
    assert (place.kind, place.hosts) == ("sentinel", (("a", 26379), ("::1", 7)))
    assert (place.user, place.password) == (None, "secret")
    assert (place.service, place.db, place.tls) == ("main", 2, True)
    assert parse("redis+cluster://a:1,b").hosts == (("a", 1), ("b", 6379))
    assert "secret" not in repr(place)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://", "host is missing"),
        ("redis:host", "the kinds are redis://, rediss://"),
        ("redis+mesh://host", "the kinds are"),
        ("redis://secret@host", "a password is missing"),
        ("redis://joe:secret#1@host", "%23"),
        ("redis://joe:[secret@host", "percent-encode special"),
        ("redis://joe:secret℀@host", "percent-encode special"),
        ("redis://:secret@host:port", "name:port"),
        ("redis://:secret@a,b", "several hosts need"),
        ("redis://:secret@host/one", "must be a number"),
        ("redis://:secret@host/1/2", "must be a number"),
        ("redis://:secret@host?password=secret", "is ssl_ca_certs"),
        ("redis://:secret@host?ssl_ca_certs=/ca.pem", "needs rediss"),
        ("rediss://:secret@host?ssl_ca_certs=/nowhere.pem", "file not found: /nowhere.pem"),
        ("redis+sentinel://:secret@host", "master's name is missing"),
        ("redis+cluster://:secret@host/1", "no numbered databases"),
    ],
)
async def test_a_wrong_url_is_refused_with_what_is_wrong(url: str, words: str) -> None:
    problem = await problem_of(url)
    assert words in str(problem)
    assert str(problem).startswith("cache = '")
    assert not isinstance(problem, Unreachable)


@pytest.mark.parametrize("kind", ["redis://{}", "redis+sentinel://{}/main", "redis+cluster://{}"])
async def test_where_nobody_listens_waiting_may_help(kind: str) -> None:
    problem = await problem_of(kind.format(f":secret@127.0.0.1:{free_port()}"))
    assert isinstance(problem, Unreachable)
    assert "is it running?" in str(problem)


# ── what is no use ────────────────────────────────────────────────────────────────────────────


async def test_a_wrong_password_is_told_from_a_redis_that_is_away(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        at = f"127.0.0.1:{server.port}"
        server.ask("ACL", "SETUSER", "joe", "on", ">a secret", "~fabric:*", "&fabric:*", "+@all")
        server.ask("CONFIG", "SET", "requirepass", "s3cret/")
        for url in (f"redis://joe:secret@{at}", f"redis://:secret@{at}", f"redis://{at}"):
            problem = await problem_of(url)
            assert not isinstance(problem, Unreachable)
            assert "rejects this user or password" in str(problem)
        for url in (f"redis://joe:a%20secret@{at}/0", f"redis://:s3cret%2F@{at}"):
            async with opened(url) as cache:
                await cache.set("mine", b"value", 60)
                assert await cache.get("mine") == b"value"
                await until_heard(cache)


async def test_a_cluster_says_so_too(redis_cluster: RedisCluster, redis_tls: RedisServer) -> None:
    problem = await problem_of(cluster_url(redis_cluster).replace("://", "://joe:secret@"))
    assert "rejects this user or password" in str(problem)
    assert not isinstance(problem, Unreachable)


async def test_a_certificate_of_somebody_unknown_is_not_accepted(redis_tls: RedisServer) -> None:
    for url in (redis_tls.url, redis_tls.url.replace("rediss:", "rediss+cluster:")[:-2]):
        problem = await problem_of(url)
        assert "not trusted" in str(problem)
        assert "?ssl_ca_certs=" in str(problem)
        assert not isinstance(problem, Unreachable)


async def test_an_old_redis_is_refused() -> None:
    info = b"# Server\r\nredis_version:5.0.14\r\n"
    async with answering(b"$%d\r\n%s\r\n" % (len(info), info)) as url:
        assert "is version 5; 6 or newer is needed" in str(await problem_of(url))


async def test_one_that_is_loading_is_waited_for() -> None:
    async with answering(b"-LOADING Redis is loading the dataset in memory\r\n") as url:
        problem = await problem_of(url)
        assert isinstance(problem, Unreachable)
        assert "still loading" in str(problem)


async def test_what_is_no_cluster_and_no_sentinel_is_refused(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        at = f"127.0.0.1:{server.port}"
        assert "Cluster mode is not enabled" in str(await problem_of(f"redis+cluster://{at}"))
        assert "SENTINEL" in str(await problem_of(f"redis+sentinel://{at}/main"))
        assert "DB index" in str(await problem_of(f"redis://{at}/99"))


async def test_a_master_of_another_name_is_not_found(redis_sentinel: RedisSentinel) -> None:
    url = sentinel_url(redis_sentinel).replace("/fabric/", "/other/")
    assert "has no master" in str(await problem_of(url))


# ── trouble while running ─────────────────────────────────────────────────────────────────────


async def test_after_a_kill_it_is_used_again_and_heard_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with RedisServer(tmp_path) as server:
        async with opened(server.url) as cache:
            await cache.set("name", b"value", 60)
            await until_heard(cache)  # it has subscribed
            server.kill()
            for attempt in (cache.get("name"), cache.set("name", b"", 60), cache.notify()):
                with pytest.raises(BackendError, match="can't be reached"):
                    await attempt
            server.start()
            await until_heard(cache)  # something may have been told meanwhile
            assert await cache.get("name") == b"value"
            await cache.notify()
            await until_heard(cache)
    # That it is away is said by those who look keys up.
    assert [record.message for record in caplog.records if record.name == "fabric.cache"] == []


async def test_who_may_not_subscribe_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with RedisServer(tmp_path) as server:
        server.ask("ACL", "SETUSER", "joe", "on", ">secret", "~fabric:*", "resetchannels", "+@all")
        async with opened(f"redis://joe:secret@127.0.0.1:{server.port}") as cache:
            await cache.check()
            waiting = asyncio.create_task(cache.wait_for_notice())
            async with asyncio.timeout(PATIENCE):
                while not caplog.records:  # noqa: ASYNC110 - the log is no event
                    await asyncio.sleep(0.01)
            waiting.cancel()
    (record,) = caplog.records
    assert record.message == "can't subscribe to change notices"
    assert "denies this user permission" in record.__dict__["reason"]


async def test_the_check_fails_as_reading_and_writing_would(
    tmp_path: Path, redis_sentinel: RedisSentinel
) -> None:
    async with opened(redis_sentinel.replica.url) as cache:
        with pytest.raises(BackendError, match="read-only replica"):
            await cache.check()
    with RedisServer(tmp_path) as server:
        async with opened(server.url) as cache:
            await cache.check()
            server.full(True)
            with pytest.raises(BackendError, match="is full"):
                await cache.check()
            server.full(False)
            await cache.check()
            server.pause()
            with pytest.raises(BackendError, match="does not answer"):
                await cache.check()
            server.resume()


async def test_the_check_misses_any_node_of_a_cluster(tmp_path: Path) -> None:
    with RedisCluster(tmp_path) as group:
        for node in group.servers:
            async with opened(cluster_url(group)) as cache:
                await cache.check()
                node.kill()
                with pytest.raises(BackendError):
                    await cache.check()
                node.start()
                async with asyncio.timeout(PATIENCE):
                    while True:
                        try:
                            await cache.check()
                        except BackendError:
                            await asyncio.sleep(0.05)  # nothing tells
                        else:
                            break


async def test_a_redis_that_hangs_costs_little_and_the_store_answers(tmp_path: Path) -> None:
    new = [new_key() for _ in range(200)]
    keys = Keys(*new)
    with RedisServer(tmp_path) as server:
        async with opened(server.url) as cache:
            authenticator = KeyAuthenticator(keys, cache)
            await authenticator.authenticate(new[0].text)
            assert authenticator.cache_problem is None
            server.pause()
            for some in (new[1:2], new[2:40], new[40:80], new[80:]):
                begun = time.monotonic()
                found = await asyncio.gather(
                    *(authenticator.authenticate(one.text) for one in some)
                )
                took = time.monotonic() - begun
                assert [key.id for key in found] == [one.row.id for one in some]
                assert took < 5.0  # 0.25 s if this machine does nothing else
            assert keys.asked == len(new)
            assert authenticator.cache_problem == "it does not answer"
            server.resume()
            await until_well(cache)
            late = new_key()
            keys.rows[late.row.hash] = late.row
            await authenticator.authenticate(late.text)
            assert authenticator.cache_problem is None
            clients = server.ask("CLIENT", "LIST").strip().splitlines()
            assert len(clients) <= CONNECTIONS + 2  # those, the one who asks


async def test_cancelled_commands_leave_the_connections_usable(tmp_path: Path) -> None:
    rng = random.Random(7)
    with RedisServer(tmp_path) as server:
        async with opened(server.url) as cache:
            for n in range(30):
                await cache.set(str(n), b"%d" % n, 60)

            async def use(n: int) -> None:
                assert await cache.get(str(n)) == b"%d" % n

            for _ in range(20):
                tasks = [asyncio.create_task(use(n)) for n in range(30)]
                for _ in range(rng.randrange(12)):
                    await asyncio.sleep(0)
                for task in rng.sample(tasks, 20):
                    task.cancel()
                await asyncio.wait(tasks)
                for task in tasks:
                    assert task.cancelled() or task.exception() is None
            await asyncio.gather(*map(use, range(30)))


async def test_a_full_redis_is_read_and_counts_as_away(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    one, other = new_key(), new_key()
    keys = Keys(one, other)
    with RedisServer(tmp_path) as server:
        async with opened(server.url) as cache:
            await until_well(cache)
            first = KeyAuthenticator(keys, cache)
            await first.authenticate(one.text)
            server.full(True)
            with pytest.raises(BackendError, match="is full: raise maxmemory"):
                await cache.set("small", b"x", 60)
            authenticator = KeyAuthenticator(keys, cache)
            await authenticator.authenticate(one.text)
            assert (keys.asked, authenticator.cache_problem) == (1, None)
            for new in (other, new_key()):
                keys.rows[new.row.hash] = new.row
                await authenticator.authenticate(new.text)
            assert keys.asked == 3
            assert "is full" in (authenticator.cache_problem or "")
            server.full(False)
            last = new_key()
            keys.rows[last.row.hash] = last.row
            await authenticator.authenticate(last.text)
            assert authenticator.cache_problem is None
    said = [record.message for record in caplog.records if record.name == "fabric.backends"]
    assert said == ["the cache is away", "the cache is back"]


async def test_a_replica_says_what_to_name_instead(redis_sentinel: RedisSentinel) -> None:
    new = new_key()
    keys = Keys(new)
    async with opened(redis_sentinel.replica.url) as cache:
        authenticator = KeyAuthenticator(keys, cache)
        assert (await authenticator.authenticate(new.text)).id == new.row.id
        assert "read-only replica" in (authenticator.cache_problem or "")


async def test_the_sentinels_new_master_is_used_and_heard(tmp_path: Path) -> None:
    with RedisSentinel(tmp_path) as group:
        async with opened(sentinel_url(group)) as cache:
            await cache.set("name", b"value", 600)
            await until_heard(cache)
            copied = lambda: group.replica.ask("GET", "fabric:name") == "value"  # noqa: E731
            await asyncio.to_thread(until, copied, PATIENCE, "the replica has no copy")
            group.master.kill()
            with pytest.raises(BackendError):
                await cache.get("name")
            await until_heard(cache)  # subscribed again, to the new one
            assert group.master_port() == group.replica.port
            await until_well(cache)
            assert await cache.get("name") == b"value"
            await cache.notify()
            await until_heard(cache)


async def test_a_cluster_without_one_node_does_its_other_part(tmp_path: Path) -> None:
    names = [f"name-{n}" for n in range(30)]
    with RedisCluster(tmp_path) as group:
        async with opened(cluster_url(group)) as cache:
            for name in names:
                await cache.set(name, b"value", 600)
            await until_heard(cache)
            group.servers[0].kill()
            found = lost = 0
            for name in names:
                try:
                    async with asyncio.timeout(PATIENCE):
                        found += await cache.get(name) == b"value"
                except BackendError:
                    lost += 1
            assert found + lost == len(names)
            assert found > 0
            assert lost > 0
            async with asyncio.timeout(PATIENCE):
                while True:  # the one that was heard may have been the one that was killed
                    try:
                        await cache.notify()
                        break
                    except BackendError:
                        await asyncio.sleep(0.05)
            await until_heard(cache)
            group.start()
            await until_well(cache)
            assert await cache.get(names[0]) == b"value"


# ── what it is for ────────────────────────────────────────────────────────────────────────────


def calls(server: RedisServer) -> int:
    """Commands so far, but for those that ask for their number."""
    told = server.ask("INFO", "commandstats")
    lines = [line for line in told.splitlines() if line.startswith("cmdstat_")]
    return sum(
        int(line.partition("calls=")[2].partition(",")[0])
        for line in lines
        if not line.startswith("cmdstat_info:")
    )


async def test_a_warm_request_asks_neither_redis_nor_the_store(tmp_path: Path) -> None:
    new = new_key()
    keys = Keys(new)
    with RedisServer(tmp_path) as server:
        async with opened(server.url) as cache:
            authenticator = KeyAuthenticator(keys, cache)
            await authenticator.authenticate(new.text)
            before, asked = calls(server), keys.asked
            assert before > 0
            for _ in range(100):
                assert authenticator.cached(new.text) is not None
                await authenticator.authenticate(new.text)
            assert (calls(server), keys.asked) == (before, asked)


async def test_names_in_a_shared_redis_begin_with_ours(tmp_path: Path) -> None:
    new = new_key()
    with RedisServer(tmp_path) as server:
        async with opened(server.url) as cache:
            await KeyAuthenticator(Keys(new), cache).authenticate(new.text)
            (name,) = server.ask("KEYS", "*")
            assert re.fullmatch(f"fabric:key:[0-9a-f]{{8}}:{new.row.hash.hex()}", name)
            assert 0 < server.ask("PTTL", name) <= 300_000


class Server:
    """What a server process has of all this: a store, a cache, its keys, and a watch."""

    def __init__(self, store: SqlStore, cache: Cache, every: float) -> None:
        self.store = store
        self.authenticator = KeyAuthenticator(store, cache)
        self.seen = asyncio.Event()
        self.watch = ChangeFeed(
            store, [self.authenticator.on_changes, self._on_changes], cache, every
        )

    def _on_changes(self, changes: Changes) -> None:
        self.seen.set()


@asynccontextmanager
async def serving(store_url: str, cache_url: str, every: float) -> AsyncIterator[Server]:
    store = await open_store(store_url)
    async with opened(cache_url) as cache:
        server = Server(store, cache, every)
        watching = asyncio.create_task(server.watch.run())
        await until_heard_first(cache)
        try:
            yield server
        finally:
            watching.cancel()
            await asyncio.wait([watching])
            await store.close()


async def until_heard_first(cache: Cache) -> None:
    """It has subscribed, so that nothing is missed from here on."""
    assert isinstance(cache, RedisCache)
    async with asyncio.timeout(PATIENCE):
        await cache.subscribed.wait()


async def test_a_revocation_is_pushed_to_the_other_servers(
    tmp_path: Path, shared_cache_url: str
) -> None:
    store = f"sqlite:///{tmp_path / uuid4().hex}.db"
    never = 600.0  # they don't look by themselves while this test runs
    async with (
        serving(store, shared_cache_url, never) as one,
        serving(store, shared_cache_url, never) as other,
    ):
        new = new_key()
        await one.store.create_key(new.row)
        await one.watch.sync()
        async with asyncio.timeout(PATIENCE):
            await other.seen.wait()
        for server in (one, other):
            await server.authenticator.authenticate(new.text)
        other.seen.clear()
        await one.store.revoke_key(new.row.id, time.time())
        await one.watch.sync()
        assert one.authenticator.cached(new.text) is None
        async with asyncio.timeout(PATIENCE):
            await other.seen.wait()
        assert other.authenticator.cached(new.text) is None
        with pytest.raises(ApiError):
            await other.authenticator.authenticate(new.text)


async def test_without_redis_the_other_servers_find_a_revocation_by_looking(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'store.db'}"
    with RedisServer(tmp_path / "redis") as redis:
        async with serving(store, redis.url, 0.5) as one, serving(store, redis.url, 0.5) as other:
            new = new_key()
            await one.store.create_key(new.row)
            redis.kill()
            for server in (one, other):
                await server.authenticator.authenticate(new.text)
            other.seen.clear()
            await one.store.revoke_key(new.row.id, time.time())
            revoked_at = time.monotonic()
            await one.watch.sync()
            async with asyncio.timeout(PATIENCE):
                await other.seen.wait()
            assert time.monotonic() - revoked_at < 10.0  # 0.5 s on an idle machine
            assert other.authenticator.cached(new.text) is None
            with pytest.raises(ApiError):
                await other.authenticator.authenticate(new.text)
