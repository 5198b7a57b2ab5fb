"""A cache, and notices between servers, in a Redis that several servers share.

Its content may be lost at any moment and no caller waits for it for long, so nothing is retried
here: a command has one connection and one second.  ``CachedKeys`` and ``ChangeFeed`` work without.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, NamedTuple, TypeAlias

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.client import PubSub
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ConnectionError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    TimeoutError,
)

from fabric_server.storage.interfaces import KEEP_REVOKED_SECONDS, MAX_REVOKED
from fabric_server.storage.redis_url import RedisUrl, parse
from runtime.background import is_cancelled
from runtime.errors import BackendError, Unreachable
from runtime.shown import without_password

log = logging.getLogger("fabric.cache")

OLDEST = 6
CONNECTIONS = 16
"""Concurrent commands, and so connections to each Redis, of one process."""
SECONDS = 1.0
"""Longest wait for a connection, and for a command with its answer."""
SENTINEL_SECONDS = 0.1
"""Longest wait for each step of querying a sentinel; then the next one is queried."""
OPEN_SECONDS = 5.0
"""Longest time until a connection is of use."""
CHECK_SECONDS = 15.0
"""Idle time after which a connection is pinged before it is used."""
CHECK_SIZE = 1024
"""Bytes that a check writes: at least those of a key, since a full Redis may accept fewer."""
QUIET_SECONDS = 10.0
"""Time without a notice after which the subscription is pinged."""
FIRST_PAUSE, LAST_PAUSE = 0.1, 2.0
"""Seconds between two attempts to subscribe."""

PREFIX = "fabric:"
CHANNEL = PREFIX + "changes"
REVOKED = PREFIX + "revoked"
"""A sorted set: ids of keys and nodes by the time of their revocation."""
REVOKED_AT_ONCE = 500

_FAILURES = (RedisError, RedisClusterException, OSError)
_AWAY = (BusyLoadingError, ConnectionError, MasterNotFoundError, TimeoutError, OSError)
_UNTRUSTED = "has a certificate that is not trusted here"

Client: TypeAlias = "Redis | RedisCluster"


class _Clients(NamedTuple):
    """Clients of a Redis; they are closed by the stack that was passed to ``_connect``."""

    client: Client
    subscriber: Callable[[], Awaitable[Redis]]
    """Make a client with a connection of its own, for notices; the caller closes it."""


def _connect(url: RedisUrl, stack: AsyncExitStack) -> _Clients:
    never = Retry(NoBackoff(), 0)
    transport: dict[str, Any] = {
        # The library would wait with wait_for, which in Python 3.11 can swallow a cancellation:
        # look-ups that were given up went on waiting (observed).  Waits are bounded here instead.
        "socket_timeout": None,
        "socket_connect_timeout": SECONDS,
        "protocol": 2,  # nothing of 3 is used, and its HELLO costs a round trip
        "driver_info": None,
    }
    if url.tls:
        transport |= {"ssl": True, "ssl_ca_certs": url.authorities, "ssl_check_hostname": True}
    login: dict[str, Any] = {"username": url.user, "password": url.password}
    # One more than commands at once: a connection given back is free a moment later.
    pool: dict[str, Any] = {"max_connections": CONNECTIONS + 1}
    pool |= {"health_check_interval": CHECK_SECONDS}
    if url.kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in url.hosts]
        cluster = RedisCluster(
            startup_nodes=nodes,
            require_full_coverage=False,  # a miss is a miss
            retry=never,
            **transport,
            **login,
            **pool,
        )
        stack.push_async_callback(_close_cluster, cluster)

        async def any_node() -> Redis:
            await cluster.initialize()
            node = random.choice(cluster.get_primaries())  # noqa: S311 - no secret
            return Redis(host=node.host, port=int(node.port), retry=never, **transport, **login)

        return _Clients(cluster, any_node)

    options: dict[str, Any] = {"db": url.db, "retry": never, **transport, **login}
    if url.kind == "sentinel":
        sentinel_options: dict[str, Any] = {"retry": never, **transport}
        sentinel_options |= {
            "socket_timeout": SENTINEL_SECONDS,
            "socket_connect_timeout": SENTINEL_SECONDS,
        }
        sentinel = Sentinel(url.hosts, sentinel_kwargs=sentinel_options)  # type: ignore[no-untyped-call]
        stack.push_async_callback(sentinel.aclose)
        client = sentinel.master_for(url.service, **options, **pool)

        async def master() -> Redis:
            found: Redis = sentinel.master_for(url.service, **options)
            return found

        stack.push_async_callback(client.aclose)
        return _Clients(client, master)

    host, port = url.hosts[0]
    client = Redis(host=host, port=port, **options, **pool)
    stack.push_async_callback(client.aclose)

    async def same() -> Redis:
        return Redis(host=host, port=port, **options)

    return _Clients(client, same)


async def _close_cluster(cluster: RedisCluster) -> None:
    await cluster.aclose()
    # aclose does nothing when a search for the nodes is due; then their connections are still open.
    await cluster.nodes_manager.aclose()
    await cluster.nodes_manager.aclose("startup_nodes")


class RedisCache:
    """A ``Cache`` in a Redis; names are prefixed, so that other programs may use the Redis too."""

    max_revoked = MAX_REVOKED

    def __init__(self, clients: _Clients, where: str, stack: AsyncExitStack) -> None:
        self._client = clients.client
        self._subscriber = clients.subscriber
        self._where = where
        self._stack = stack
        self._free_connections = asyncio.Semaphore(CONNECTIONS)
        self._noticed = asyncio.Event()
        self.subscribed = asyncio.Event()
        """Set while subscribed to notices, which the first ``wait_for_notice`` starts."""
        self._listener: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, url: str) -> RedisCache:
        """Connect to the Redis at ``url``.

        Raises ``ValueError`` when the URL is wrong, ``Unreachable`` when nothing answers there
        now, ``BackendError`` when the server can't be used.
        """
        parsed = parse(url)
        where = f"Redis at {without_password(url)}"
        async with AsyncExitStack() as stack:
            try:
                clients = _connect(parsed, stack)
                async with asyncio.timeout(OPEN_SECONDS):
                    version = await _version(clients.client)
            except _FAILURES as error:
                raise _no_entry(error, where) from error
            if version < OLDEST:
                raise BackendError(f"{where} is version {version}; {OLDEST} or newer is needed")
            return cls(clients, where, stack.pop_all())
        raise AssertionError  # the stack lets every exception pass

    def __repr__(self) -> str:
        return f"<RedisCache {self._where}>"

    async def get(self, name: str) -> bytes | None:
        async with self._command():
            value = await self._client.get(PREFIX + name)
            assert not isinstance(value, str)  # the client does not decode
            return value

    async def set(self, name: str, value: bytes, seconds: float) -> None:
        async with self._command():
            await self._client.set(PREFIX + name, value, px=max(1, int(seconds * 1000)))

    async def revoked(self) -> dict[str, float]:
        # The newest first: what is added meanwhile moves the others back, and none is missed.
        all: dict[str, float] = {}
        for start in range(0, self.max_revoked, REVOKED_AT_ONCE):
            end = start + REVOKED_AT_ONCE - 1
            async with self._command():
                found: Any = await self._client.zrevrange(REVOKED, start, end, withscores=True)
            all |= {id.decode("ascii", "replace"): at for id, at in found}
            if len(found) < REVOKED_AT_ONCE:
                break
        return all

    async def add_revoked(self, revoked: Mapping[str, float]) -> None:
        waiting = list(revoked.items())
        for at in range(0, len(waiting), REVOKED_AT_ONCE):
            async with self._command():
                await self._client.zadd(REVOKED, dict(waiting[at : at + REVOKED_AT_ONCE]))
        async with self._command():
            await self._client.zremrangebyrank(REVOKED, 0, -self.max_revoked - 1)
            await self._client.pexpire(REVOKED, int(KEEP_REVOKED_SECONDS * 1000))

    async def check(self) -> None:
        async with self._command():
            if isinstance(self._client, RedisCluster):
                await self._client.ping(target_nodes=RedisCluster.PRIMARIES)
            await self._client.set(PREFIX + "check", b" " * CHECK_SIZE, px=1000)
            await self._client.get(PREFIX + "check")

    async def notify(self) -> None:
        async with self._command():
            await self._client.publish(CHANNEL, b"")

    async def wait_for_notice(self) -> None:
        if self._listener is None:
            self._listener = asyncio.get_running_loop().create_task(self._listen())
        await self._noticed.wait()
        self._noticed.clear()

    async def close(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait([self._listener])
        with suppress(*_FAILURES):  # nothing depends on it any more
            await self._stack.aclose()

    @asynccontextmanager
    async def _command(self) -> AsyncIterator[None]:
        """Wait for a free connection, and translate the errors of a command."""
        async with self._free_connections:
            try:
                async with asyncio.timeout(SECONDS):
                    yield
            except _FAILURES as error:
                raise explain(error, self._where) from error

    # ── notices ───────────────────────────────────────────────────────────────────────────────

    async def _listen(self) -> None:
        """Receive notices until cancelled."""
        pause, away = FIRST_PAUSE, False
        while True:
            try:
                async with self._subscription() as subscription:
                    # The confirmation counts as a notice: one may have been missed until now.
                    await self._receive(subscription)
                    self.subscribed.set()
                    pause = FIRST_PAUSE
                    if away:
                        log.info("subscribed to change notices again")
                        away = False
                    while True:
                        await self._receive(subscription)
            except Exception as error:
                if is_cancelled():  # a connection may also break while it is closed
                    raise
                self.subscribed.clear()
                # Any error, of the library or of the network: ``ChangeFeed`` polls every half
                # second anyway, and nothing waits for this task to end.  That Redis is away is
                # logged by ``CachedKeys``, whose check fails as well.
                if not away and not isinstance(_cause(error), _AWAY):
                    reason = str(explain(error, self._where))
                    log.warning("can't subscribe to change notices", extra={"reason": reason})
                    away = True
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
            pause = min(2 * pause, LAST_PAUSE)

    @asynccontextmanager
    async def _subscription(self) -> AsyncIterator[PubSub]:
        async with asyncio.timeout(OPEN_SECONDS):
            client = await self._subscriber()
        try:
            subscription = client.pubsub()
            try:
                async with asyncio.timeout(OPEN_SECONDS):
                    await subscription.subscribe(CHANNEL)
                yield subscription
            finally:
                await subscription.aclose()  # type: ignore[no-untyped-call]
        finally:
            await client.aclose()

    async def _receive(self, subscription: PubSub) -> None:
        """Return at a notice, or when subscribed; raise when the connection is dead."""
        message = await subscription.get_message(timeout=QUIET_SECONDS)
        if message is None:
            await subscription.ping()
            message = await subscription.get_message(timeout=SECONDS)
            if message is None:
                raise TimeoutError
        if message["type"] != "pong":
            self._noticed.set()


async def _version(client: Client) -> int:
    more: dict[str, Any] = {}
    if isinstance(client, RedisCluster):
        await client.initialize()
        more["target_nodes"] = client.get_default_node()
    info = await client.info("server", **more)
    return int(str(info["redis_version"]).partition(".")[0])


def _no_entry(error: Exception, where: str) -> BackendError:
    """Return the error of a first connection that failed."""
    cause = _cause(error)
    explained = explain(error, where)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return explained
    match cause:
        case AuthenticationError() | AuthorizationError():
            return explained
        case BusyLoadingError() | ConnectionError() | TimeoutError() | OSError():
            return Unreachable(f"{explained}: is it running?")
    return explained


def explain(error: Exception, where: str) -> BackendError:
    """Translate the library's error into one line that says what to do."""
    match _cause(error):
        case ssl.SSLCertVerificationError() as cause:
            text = f"{_UNTRUSTED} ({cause.verify_message}): name its CA with ?ssl_ca_certs=path"
        case AuthenticationError() | AuthorizationError() as cause:
            text = f"rejects this user or password ({_text(cause)})"
        case NoPermissionError() as cause:
            text = f"denies this user permission ({_text(cause)})"
        case OutOfMemoryError():
            text = "is full: raise maxmemory, or set maxmemory-policy to allkeys-lru"
        case ReadOnlyError():
            text = (
                "is a read-only replica: name the master, or its sentinels with redis+sentinel://"
            )
        case BusyLoadingError():
            text = "is still loading its data"
        case MasterNotFoundError():
            text = "has no master: its sentinels do not answer, or know none of this name"
        case TimeoutError() | asyncio.TimeoutError():
            text = "does not answer"
        case ConnectionError() | OSError() as cause:
            text = f"can't be reached ({_text(cause)})"
        case cause:
            text = f"failed: {_text(cause)}"
    return BackendError(f"{where} {text}")


def _cause(error: BaseException) -> BaseException:
    """Return the error that the library wrapped in a vaguer one: a cluster's, or TLS's."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, ssl.SSLCertVerificationError):
            return inner
        inner = inner.__cause__ or inner.__context__
    if isinstance(error, RedisClusterException) and error.__cause__ is not None:
        return error.__cause__
    return error


def _text(error: BaseException) -> str:
    """Return the library's text on one line."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
