"""Fetches a URL of a client's, by the rules of ``net.egress``.

Each hop of a redirect is checked anew.  The connection goes to the addresses that were checked, and
TLS verifies the name.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import quote, urljoin

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from fabric_server.net.egress import Allowed, Forbidden, LookUp, Target, parse_target, resolve
from fabric_server.net.special_addresses import is_public

MAX_REDIRECTS = 3
MAX_LOOK_UPS = 4
"""Look-ups of one owner's names at once, with those that nobody waits for any more: a look-up
can't be broken off."""
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_WEB_PORTS = frozenset({80, 443})
_FIRST_FREE_PORT = 1024
_PRINTABLE = "".join(map(chr, range(0x21, 0x7F)))
_HEADERS = {"user-agent": "fabric", "accept": "*/*", "accept-encoding": "identity"}


class FetchError(Exception):
    """A URL could not be fetched; ``str()`` says why, for the client."""


class Fetched(NamedTuple):
    content_type: str
    """What the server said, unchecked."""
    chunks: list[bytes]


class Fetcher:
    """Fetches by GET.  Knows nothing of what is fetched."""

    def __init__(
        self,
        look_up: LookUp,
        allowed: Allowed = is_public,
        *,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        self._look_up = look_up
        self._allowed = allowed
        # aiohttp has a context with the public CAs; another would take 20 ms of each start.
        self._trust: ssl.SSLContext | bool = trust or True
        self._look_ups: Counter[str] = Counter()
        self._running: set[asyncio.Task[Sequence[str]]] = set()

    async def get(self, url: str, owner: str, take: Callable[[int], None]) -> Fetched:
        """Return what is at ``url``.

        ``owner`` is whose request it is.  ``take`` is called with the announced length, 0 if there
        is none, and then with each further length; what it raises ends the fetch.  Raises
        ``Forbidden`` and ``FetchError``.
        """
        for _ in range(MAX_REDIRECTS + 1):
            found = await self._get(url, owner, take)
            if isinstance(found, Fetched):
                return found
            url = urljoin(url, found)
        raise FetchError(f"it redirects more than {MAX_REDIRECTS} times")

    async def _get(self, url: str, owner: str, take: Callable[[int], None]) -> Fetched | str:
        """Return what is at ``url``, or where it redirects to."""
        # Letters beyond ASCII are for the path; in a host the percent signs are refused.
        target = parse_target(
            quote(url.partition("#")[0], safe=_PRINTABLE),
            allow_http=True,
            allowed=self._allowed,
        )
        if target.port < _FIRST_FREE_PORT and target.port not in _WEB_PORTS:
            raise Forbidden(f"port {target.port} is not for the web")
        try:
            addresses = await resolve(target, self._limited_look_up(owner), self._allowed)
            async with (
                self._session(addresses) as session,
                session.get(_encoded(target), allow_redirects=False) as response,
            ):
                if response.status in _REDIRECTS and "location" in response.headers:
                    return response.headers["location"]
                return await _read(response, take)
        except aiohttp.ClientConnectorCertificateError:
            raise FetchError("its server's certificate is not valid") from None
        except socket.gaierror:
            raise FetchError("its host is not known") from None
        except (aiohttp.ClientError, OSError, EOFError, ValueError):
            raise FetchError("its server can't be reached or answers nonsense") from None

    def _session(self, addresses: Sequence[str]) -> aiohttp.ClientSession:
        """Return a session that knows no other addresses, keeps no connection and no cookie."""
        connector = aiohttp.TCPConnector(
            resolver=_Pinned(addresses), use_dns_cache=False, force_close=True, ssl=self._trust
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=_HEADERS,
            auto_decompress=False,
            trust_env=False,
            timeout=aiohttp.ClientTimeout(total=None),
        )

    def _limited_look_up(self, owner: str) -> LookUp:
        async def look_up(host: str, port: int) -> Sequence[str]:
            if self._look_ups[owner] >= MAX_LOOK_UPS:
                raise FetchError("too many slow host names are looked up for this key")
            self._look_ups[owner] += 1
            task = asyncio.get_running_loop().create_task(self._find(host, port))
            self._running.add(task)

            def on_done(task: asyncio.Task[Sequence[str]]) -> None:
                self._running.discard(task)
                self._look_ups[owner] -= 1
                if not self._look_ups[owner]:
                    del self._look_ups[owner]
                if not task.cancelled():
                    task.exception()  # whoever waited for it may have gone

            task.add_done_callback(on_done)
            return await asyncio.shield(task)

        return look_up

    async def _find(self, host: str, port: int) -> Sequence[str]:
        return await self._look_up(host, port)


class _Pinned(AbstractResolver):
    """Resolves any name to the addresses that were checked."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        """Do nothing: there is nothing to close."""


def _encoded(target: Target) -> URL:
    path, _, query = target.path.partition("?")
    return URL.build(
        scheme=target.scheme,
        host=target.host,
        port=target.port,
        path=path,
        query_string=query,
        encoded=True,
    )


async def _read(response: aiohttp.ClientResponse, take: Callable[[int], None]) -> Fetched:
    if response.status != 200:
        raise FetchError(f"its server answers with status {response.status}")
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise FetchError("its server sends it compressed, which nobody asked for")
    announced = response.content_length or 0
    take(announced)
    chunks, size = [], 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > announced:
            take(min(len(chunk), size - announced))
        chunks.append(chunk)
    return Fetched(response.headers.get("content-type", ""), chunks)
