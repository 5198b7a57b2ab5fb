"""Connections through an HTTP proxy, by the method CONNECT.

    TCP, or TLS for an https:// proxy ── CONNECT host:port ── 200 ── TLS with the host itself

The proxy learns host and port, and passes on what it can't read.  Which proxy is used for which
host is told by a setting, or by the variables HTTPS_PROXY and NO_PROXY.  Source: RFC 9110, 9.3.6.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any, TypeVar, cast
from urllib.parse import unquote, urlsplit

from runtime import connecting
from runtime.asyncio_protocol import AsyncioProtocol

SECONDS = 10.0
"""Time for reaching a proxy and for its answer, together."""
MAX_ANSWER = 16_384
"""Maximum size of its answer's head, in bytes."""
NONE = "none"
"""Value of the setting for no proxy, whatever the environment says."""

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})(?: |$)")
_EXCEPTION = re.compile(r"(\[[^\]]*\](?:/\d+)?|[^:]*)(?::(\d{1,5}))?")
_LOOPBACK = ("localhost", "127.0.0.0/8", "::1")
_HTTPS = "use one whose address begins with http:// or https://"

P = TypeVar("P", bound=AsyncioProtocol)


class ProxyError(OSError):
    """A proxy that can't be reached, or that refuses; ``str()`` has the reason and the remedy."""

    def __init__(self, code: str, what: str, remedy: str) -> None:
        super().__init__(f"{what}: {remedy}")
        self.code, self.what, self.remedy = code, what, remedy


@dataclass(frozen=True)
class HttpProxy:
    """A proxy; its text is its address, without user and password."""

    host: str
    port: int
    tls: bool
    source: str
    """The setting or variable that it comes from."""
    authorization: str = field(default="", repr=False)
    seconds: float = SECONDS

    def __str__(self) -> str:
        return _address(self.host, self.port)


@dataclass(frozen=True)
class Proxies:
    """The choice of a proxy for a host; without one it is reached directly."""

    proxy: HttpProxy | None = None
    exceptions: tuple[str, ...] = ()
    """Hosts that are reached directly, as in NO_PROXY."""

    @classmethod
    def of(cls, setting: str, environ: Mapping[str, str]) -> Proxies:
        """Make the choice of a setting, or of the environment if that is empty.

        Raises ``ValueError``, which names the wrong one and shows no password.
        """
        if setting:
            return cls() if setting == NONE else cls(parse(setting, "the setting proxy"))
        for name in ("https_proxy", "HTTPS_PROXY"):
            if environ.get(name):
                but = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
                exceptions = [one.strip() for one in but.split(",") if one.strip()]
                return cls(parse(environ[name], name), (*_LOOPBACK, *exceptions))
        return cls()

    def for_host(self, host: str, port: int) -> HttpProxy | None:
        """Return the proxy by which a host is reached; None if it is reached directly."""
        if any(_matches(one, host.lower().rstrip("."), port) for one in self.exceptions):
            return None
        return self.proxy


DIRECT = Proxies()


def parse(text: str, source: str) -> HttpProxy:
    """Parse a proxy's URL; ``http://`` may be missing.  Raises ``ValueError`` without the text."""
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError(f"{source} names no proxy: {_HTTPS}") from None
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{source} names a proxy of another kind than HTTP: {_HTTPS}")
    if not host or not host.isprintable() or " " in host or parts.path not in ("", "/"):
        raise ValueError(f"{source} names no proxy: {_HTTPS}")
    tls = parts.scheme == "https"
    authorization = ""
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = f"Basic {b64encode(pair.encode()).decode()}"
    return HttpProxy(host, port or (443 if tls else 80), tls, source, authorization)


def _matches(exception: str, host: str, port: int) -> bool:
    found = _EXCEPTION.fullmatch(exception.lower())  # None: IPv6 without brackets
    name, number = (found[1], found[2]) if found else (exception.lower(), None)
    if number is not None and int(number) != port:
        return False
    name = name.strip("[]")
    if name == "*":
        return True
    try:
        return ip_address(host) in ip_network(name, strict=False)
    except ValueError:  # one of them is a name
        name = name.removeprefix("*").strip(".")
        return bool(name) and (host == name or host.endswith(f".{name}"))


async def connect(
    factory: Callable[[], P],
    address: tuple[str, int],
    *,
    proxy: HttpProxy | None,
    tls: ssl.SSLContext | None,
    server_hostname: str | None,
) -> tuple[asyncio.Transport, P]:
    """Connect to a host and port, by way of the proxy if there is one, with TLS unless None.

    Raises OSError, of which ``ProxyError`` and ssl.SSLError are, or TimeoutError.
    """
    loop = asyncio.get_running_loop()
    name = server_hostname if tls is not None else None
    if proxy is None:
        sock = await connecting.connect(*address)
        made: Callable[[], Any] = factory
        return await loop.create_connection(made, sock=sock, ssl=tls, server_hostname=name)
    transport = await _tunnel(proxy, *address)
    try:
        waiting = _Waiting()
        if tls is None:
            through: asyncio.Transport | None = transport
        else:
            through = await loop.start_tls(transport, waiting, tls, server_hostname=name)
        if through is None:
            raise ConnectionResetError("closed during the TLS handshake")
        protocol = factory()
        through.set_protocol(cast(asyncio.BaseProtocol, protocol))
        protocol.connection_made(through)
        waiting.pass_on(protocol)
        return through, protocol
    except BaseException:
        transport.abort()
        raise


async def open_streams(
    address: tuple[str, int],
    *,
    proxy: HttpProxy | None,
    tls: ssl.SSLContext | None,
    server_hostname: str | None,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect as ``connect`` does; return streams, as ``asyncio.open_connection`` does."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(loop=loop)
    transport, protocol = await connect(
        lambda: asyncio.StreamReaderProtocol(reader, loop=loop),
        address,
        proxy=proxy,
        tls=tls,
        server_hostname=server_hostname,
    )
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


async def _tunnel(proxy: HttpProxy, host: str, port: int) -> asyncio.Transport:
    """Return a connection to the proxy that from now on is one to the host."""
    loop = asyncio.get_running_loop()
    tls = ssl.create_default_context() if proxy.tls else None
    transport: asyncio.Transport | None = None
    request = _request(proxy, host, port)
    try:
        async with asyncio.timeout(proxy.seconds):
            transport, answer = await loop.create_connection(
                lambda: ConnectAnswer(loop.create_future()),
                sock=await connecting.connect(proxy.host, proxy.port),
                ssl=tls,
                server_hostname=proxy.host if proxy.tls else None,
            )
            transport.write(request)
            head, rest = await answer.done
        check_answer(proxy, head, rest, _address(host, port))
        return transport
    except BaseException as error:
        if transport is not None:
            transport.abort()
        if isinstance(error, ProxyError) or not isinstance(error, OSError):
            raise
        raise _unreachable(proxy, error) from error


def _request(proxy: HttpProxy, host: str, port: int) -> bytes:
    name = host if host.isascii() else host.encode("idna").decode("ascii")
    if not name.isprintable() or " " in name:
        raise UnicodeError(f"{name!r} is no name of a host")
    where = _address(name, port)
    lines = [f"CONNECT {where} HTTP/1.1", f"Host: {where}"]
    if proxy.authorization:
        lines.append(f"Proxy-Authorization: {proxy.authorization}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


def check_answer(proxy: HttpProxy, head: bytes, rest: bytes, where: str) -> None:
    """Raise ``ProxyError`` unless the answer opens the way."""
    found = _STATUS.match(head.partition(b"\r\n")[0])
    if found is None:
        raise _no_proxy(proxy)
    status = int(found[1])
    if status in (401, 407):  # tinyproxy answers 401 to a wrong password
        methods = b",".join(re.findall(rb"(?im)^proxy-authenticate:[ \t]*(\S+)", head)).lower()
        if methods and b"basic" not in methods:
            raise ProxyError(
                "proxy_login",
                f"the proxy {proxy} wants a login that is not user and password ({status})",
                "use a local proxy that logs in there, such as cntlm or px, and name that one",
            )
        given = "another user or password" if proxy.authorization else "a user and a password"
        raise ProxyError(
            "proxy_login",
            f"the proxy {proxy} wants {given} ({status})",
            f"write them into {proxy.source}, as http://user:password@{proxy}",
        )
    if status in (502, 503, 504):
        raise ProxyError(
            "proxy_no_way",
            f"the proxy {proxy} can't reach {where} ({status})",
            "check that the server runs, and that the proxy may go to this port: many allow only "
            "443, which a server with --one-port 443 uses",
        )
    if not 200 <= status < 300:
        raise ProxyError(
            "proxy_refuses",
            f"the proxy {proxy} refuses a connection to {where} ({status})",
            "have its administrator allow it; many allow only port 443, which a server with "
            "--one-port 443 uses",
        )
    if rest:
        raise _no_proxy(proxy)


def _no_proxy(proxy: HttpProxy) -> ProxyError:
    what = f"what answers at {proxy} is no HTTP proxy"
    return ProxyError("proxy_wrong", what, f"correct {proxy.source}")


def _unreachable(proxy: HttpProxy, error: OSError) -> ProxyError:
    if isinstance(error, TimeoutError):
        reason = f"no answer within {proxy.seconds:g} s"
    elif isinstance(error, ssl.SSLError):
        reason = f"TLS failed, {(error.reason or str(error)).lower().replace('_', ' ')}"
    elif isinstance(error, ConnectionRefusedError):
        reason = "connection refused"
    elif isinstance(error, ConnectionError):
        reason = "it closed the connection"
    else:
        reason = error.strerror or str(error)
    what = f"the proxy {proxy} can't be used ({reason})"
    remedy = f"check that it runs and that {proxy.source} names it; proxy = none goes without one"
    return ProxyError("proxy_away", what, remedy)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class ConnectAnswer(asyncio.Protocol):
    """Reads the head of a proxy's answer; ``done`` has it, and what followed."""

    def __init__(self, done: asyncio.Future[tuple[bytes, bytes]]) -> None:
        self.done = done
        self._read = bytearray()

    def data_received(self, data: bytes) -> None:
        if self.done.done():
            return
        searched = max(0, len(self._read) - 3)
        self._read += data[: MAX_ANSWER + 1 - len(self._read)]
        end = self._read.find(b"\r\n\r\n", searched)
        if end >= 0:
            self.done.set_result((bytes(self._read[:end]), bytes(self._read[end + 4 :])))
        elif len(self._read) > MAX_ANSWER:
            self.done.set_result((b"", b""))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionResetError("closed"))


class _Waiting(asyncio.Protocol):
    """Keeps what arrives right after a TLS handshake, until the protocol is there."""

    def __init__(self) -> None:
        self._data: list[bytes] = []
        self._lost: list[Exception | None] = []

    def data_received(self, data: bytes) -> None:
        self._data.append(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._lost.append(error)

    def pass_on(self, protocol: AsyncioProtocol) -> None:
        """Give a protocol what has arrived."""
        for data in self._data:
            protocol.data_received(data)
        for error in self._lost:
            protocol.connection_lost(error)
