"""A cache, and notices between servers, in a Redis that several servers share.

What is in it may be lost at any moment and nobody waits for it for long, so nothing is tried twice
here: a command has one connection and one second.  ``CachedKeys`` and ``ChangeFeed`` go on without.
"""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import parse_qsl, unquote, urlsplit

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

from runtime.errors import BackendError, Unreachable
from runtime.shown import without_password

log = logging.getLogger("fabric.cache")

OLDEST = 6
CONNECTIONS = 16
"""Commands on their way at once, and so connections to each Redis, from one process."""
SECONDS = 1.0
"""Longest wait for a connection, and for a command with its answer."""
SENTINEL_SECONDS = 0.1
"""Longest wait for each step of asking a sentinel; then the next one is asked."""
OPEN_SECONDS = 5.0
CHECK_SECONDS = 15.0
"""A connection that was idle for so long is asked whether it lives before it is used."""
QUIET_SECONDS = 10.0
"""After so long without a notice, whether the connection that brings them lives is asked."""
FIRST_PAUSE, LAST_PAUSE = 0.1, 2.0

PREFIX = "fabric:"
CHANNEL = PREFIX + "changes"

SCHEMES = (
    *("redis", "rediss"),
    *("redis+sentinel", "rediss+sentinel"),
    *("redis+cluster", "rediss+cluster"),
)

_PORTS = {"": 6379, "sentinel": 26379, "cluster": 6379}
_FAILURES = (RedisError, RedisClusterException, OSError)
_UNTRUSTED = "has a certificate that is not trusted here"

Client: TypeAlias = "Redis | RedisCluster"


@dataclass(frozen=True)
class Place:
    """What a URL says."""

    kind: str
    """``""``, ``sentinel`` or ``cluster``: who the hosts are."""
    hosts: tuple[tuple[str, int], ...]
    user: str | None
    password: str | None
    service: str
    db: int
    tls: bool
    authorities: str | None
    """A file of certificates to trust (PEM); None is this machine's usual ones."""

    def __repr__(self) -> str:
        return f"<Place {self.kind or 'redis'} {self.hosts}>"


def parse(url: str) -> Place:
    """``redis://``, ``rediss://`` (TLS, certificates verified), and each with ``+sentinel``
    (``redis+sentinel://host:port,host:port/service/db``) or ``+cluster`` (``host:port,…``).

    ``?ssl_ca_certs=path`` names the authorities to trust.  What is special in user and password is
    percent-encoded.  ``ValueError`` says what is wrong, and repeats nothing that may be secret.
    """
    try:
        parts = urlsplit(url)
    except ValueError:  # its text may hold the password
        raise ValueError("what is special in a user or password is percent-encoded") from None
    scheme, _, kind = parts.scheme.partition("+")
    if parts.scheme not in SCHEMES or not url.startswith(f"{parts.scheme}://"):
        raise ValueError(f"the kinds are {', '.join(name + '://' for name in SCHEMES)}")
    if parts.fragment:
        raise ValueError("'#' in a user or password is written %23")
    login, at, hosts = parts.netloc.rpartition("@")
    user, colon, password = login.partition(":")
    if at and not (colon and password):
        raise ValueError("who is named before the '@' needs a password: user:password@ or :pass@")
    path = [unquote(piece) for piece in parts.path.split("/")[1:] if piece]
    service = ""
    if kind == "sentinel":
        if not path:
            raise ValueError("the name that the sentinels give the master follows them: /name")
        service = path.pop(0)
    if len(path) > 1 or (path and not path[0].isdecimal()):
        raise ValueError("a database is a number")
    db = int(path[0]) if path else 0
    if kind == "cluster" and db:
        raise ValueError("a cluster has no databases")
    tls = scheme == "rediss"
    return Place(
        kind=kind,
        hosts=_hosts(hosts, _PORTS[kind], several=bool(kind)),
        user=unquote(user) or None,
        password=unquote(password) or None,
        service=service,
        db=db,
        tls=tls,
        authorities=_authorities(parts.query, tls),
    )


def _hosts(text: str, usual: int, *, several: bool) -> tuple[tuple[str, int], ...]:
    found = []
    for piece in text.split(","):
        try:
            one = urlsplit(f"//{piece}")
            port = one.port
        except ValueError:
            raise ValueError("a host is name, name:port or [address]:port") from None
        if not one.hostname:
            raise ValueError("it names no host")
        found.append((one.hostname, usual if port is None else port))
    if len(found) > 1 and not several:
        raise ValueError("several hosts are for redis+sentinel:// and redis+cluster://")
    return tuple(found)


def _authorities(query: str, tls: bool) -> str | None:
    options = dict(parse_qsl(query, keep_blank_values=True))
    path = options.pop("ssl_ca_certs", None)
    if options:
        raise ValueError("after the '?' only ssl_ca_certs=path is known")
    if path is None:
        return None
    if not tls:
        raise ValueError("ssl_ca_certs is for rediss://")
    if not Path(path).is_file():
        raise ValueError(f"there is no file {path}")
    return path


class _Links(NamedTuple):
    """The ways to a Redis; what is in them is closed with the stack that ``_connect`` was given."""

    client: Client
    subscriber: Callable[[], Awaitable[Redis]]
    """A client with a connection of its own, for notices; to be closed by whoever asked for it."""


def _connect(place: Place, stack: AsyncExitStack) -> _Links:
    never = Retry(NoBackoff(), 0)
    transport: dict[str, Any] = {
        # The library would wait with wait_for, which in Python 3.11 can swallow a cancellation:
        # look-ups that gave up waited on (seen).  All waiting is bounded here instead.
        "socket_timeout": None,
        "socket_connect_timeout": SECONDS,
        "protocol": 2,  # nothing of 3 is used, and greeting in it costs a round trip more
        "driver_info": None,
    }
    if place.tls:
        transport |= {"ssl": True, "ssl_ca_certs": place.authorities, "ssl_check_hostname": True}
    login: dict[str, Any] = {"username": place.user, "password": place.password}
    # One more than commands at once: a connection given back is free a moment later.
    pool: dict[str, Any] = {"max_connections": CONNECTIONS + 1}
    pool |= {"health_check_interval": CHECK_SECONDS}
    if place.kind == "cluster":
        nodes = [ClusterNode(host, port) for host, port in place.hosts]
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

        return _Links(cluster, any_node)

    options: dict[str, Any] = {"db": place.db, "retry": never, **transport, **login}
    if place.kind == "sentinel":
        asked: dict[str, Any] = {"retry": never, **transport}
        asked |= {"socket_timeout": SENTINEL_SECONDS, "socket_connect_timeout": SENTINEL_SECONDS}
        sentinel = Sentinel(place.hosts, sentinel_kwargs=asked)  # type: ignore[no-untyped-call]
        stack.push_async_callback(sentinel.aclose)
        client = sentinel.master_for(place.service, **options, **pool)

        async def master() -> Redis:
            found: Redis = sentinel.master_for(place.service, **options)
            return found

        stack.push_async_callback(client.aclose)
        return _Links(client, master)

    host, port = place.hosts[0]
    client = Redis(host=host, port=port, **options, **pool)
    stack.push_async_callback(client.aclose)

    async def same() -> Redis:
        return Redis(host=host, port=port, **options)

    return _Links(client, same)


async def _close_cluster(cluster: RedisCluster) -> None:
    await cluster.aclose()
    # It does nothing when it is about to look for the nodes anew; their connections are open still.
    await cluster.nodes_manager.aclose()
    await cluster.nodes_manager.aclose("startup_nodes")


class RedisCache:
    """``Cache`` at a ``redis://`` URL; names are prefixed, so that others may use the Redis too."""

    def __init__(self, links: _Links, where: str, stack: AsyncExitStack) -> None:
        self._client = links.client
        self._subscriber = links.subscriber
        self._where = where
        self._stack = stack
        self._turns = asyncio.Semaphore(CONNECTIONS)
        self._told = asyncio.Event()
        self.subscribed = asyncio.Event()
        """Set while notices can be heard; they are once ``heard`` was called."""
        self._listener: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, url: str) -> RedisCache:
        """Raises ``ValueError`` when the URL is wrong, ``Unreachable`` when nobody answers there
        now, ``BackendError`` when what answers is no use."""
        place = parse(url)
        where = f"Redis at {without_password(url)}"
        async with AsyncExitStack() as stack:
            try:
                links = _connect(place, stack)
                async with asyncio.timeout(OPEN_SECONDS):
                    version = await _version(links.client)
            except _FAILURES as error:
                raise _no_entry(error, where) from error
            if version < OLDEST:
                raise BackendError(f"{where} is version {version}; {OLDEST} or newer is needed")
            return cls(links, where, stack.pop_all())
        raise AssertionError  # the stack lets every exception pass

    def __repr__(self) -> str:
        return f"<RedisCache {self._where}>"

    async def get(self, name: str) -> bytes | None:
        async with self._turn():
            value = await self._client.get(PREFIX + name)
            assert not isinstance(value, str)  # it is told not to decode
            return value

    async def set(self, name: str, value: bytes, seconds: float) -> None:
        async with self._turn():
            await self._client.set(PREFIX + name, value, px=max(1, int(seconds * 1000)))

    async def notify(self) -> None:
        async with self._turn():
            await self._client.publish(CHANNEL, b"")

    async def wait_for_notice(self) -> None:
        if self._listener is None:
            self._listener = asyncio.get_running_loop().create_task(self._listen())
        await self._told.wait()
        self._told.clear()

    async def close(self) -> None:
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait([self._listener])
        with suppress(*_FAILURES):  # of no interest any more
            await self._stack.aclose()

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """A connection is free; what goes wrong on it comes out in our own words."""
        async with self._turns:
            try:
                async with asyncio.timeout(SECONDS):
                    yield
            except _FAILURES as error:
                raise explain(error, self._where) from error

    # ── notices ───────────────────────────────────────────────────────────────────────────────

    async def _listen(self) -> None:
        """Until cancelled."""
        pause, away = FIRST_PAUSE, False
        while True:
            try:
                async with self._subscription() as subscription:
                    # This also counts as told: something may have been missed until now.
                    await self._hear(subscription)
                    self.subscribed.set()
                    pause = FIRST_PAUSE
                    if away:
                        log.info("notices are heard again")
                        away = False
                    while True:
                        await self._hear(subscription)
            except Exception as error:
                self.subscribed.clear()
                # Whatever it is, of the library or of the network: looking every half second
                # does for notices, and nobody waits for this task to end.
                if not away:
                    reason = str(explain(error, self._where))
                    log.warning("notices of changes can't be heard", extra={"reason": reason})
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

    async def _hear(self, subscription: PubSub) -> None:
        """Returns when told, or subscribed; raises when the connection does not live any more."""
        message = await subscription.get_message(timeout=QUIET_SECONDS)
        if message is None:
            await subscription.ping()
            message = await subscription.get_message(timeout=SECONDS)
            if message is None:
                raise TimeoutError
        if message["type"] != "pong":
            self._told.set()


async def _version(client: Client) -> int:
    more: dict[str, Any] = {}
    if isinstance(client, RedisCluster):
        await client.initialize()
        more["target_nodes"] = client.get_default_node()
    told = await client.info("server", **more)
    return int(str(told["redis_version"]).partition(".")[0])


def _no_entry(error: Exception, where: str) -> BackendError:
    """Why the first connection came to nothing."""
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
    """The library's error in one line that says what to do."""
    match _cause(error):
        case ssl.SSLCertVerificationError() as cause:
            said = f"{_UNTRUSTED} ({cause.verify_message}): name its authority, ?ssl_ca_certs=path"
        case AuthenticationError() | AuthorizationError() as cause:
            said = f"refuses this user or password ({_said(cause)})"
        case NoPermissionError() as cause:
            said = f"does not let this user do that ({_said(cause)})"
        case OutOfMemoryError():
            said = "is full: raise maxmemory, or set maxmemory-policy to allkeys-lru"
        case ReadOnlyError():
            said = "is a read-only replica: name the master, or its sentinels by redis+sentinel://"
        case BusyLoadingError():
            said = "is still loading its data"
        case MasterNotFoundError():
            said = "has no master: its sentinels do not answer, or know none of this name"
        case TimeoutError() | asyncio.TimeoutError():
            said = "does not answer"
        case ConnectionError() | OSError() as cause:
            said = f"can't be reached ({_said(cause)})"
        case cause:
            said = f"failed: {_said(cause)}"
    return BackendError(f"{where} {said}")


def _cause(error: BaseException) -> BaseException:
    """The library wraps some errors in vaguer ones: a cluster all of them, a connection TLS's."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, ssl.SSLCertVerificationError):
            return inner
        inner = inner.__cause__ or inner.__context__
    if isinstance(error, RedisClusterException) and error.__cause__ is not None:
        return error.__cause__
    return error


def _said(error: BaseException) -> str:
    """The library's words, on one line."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
