"""The first message of a TLS client: which name and which protocols it asks for.

    record     22 | 3 | minor | length (2)
    handshake   1 | length (3)
    hello      version (2) | random (32) | session id <1> | ciphers <2> | compressions <1>
               extensions <2>:  type (2) | data <2>     0: server name     16: ALPN

``<n>`` is a length of n bytes and so many bytes.  Source: RFC 8446, 4.1.2 and 5.1; RFC 6066, 3;
RFC 7301, 3.1.  OpenSSL reads the message again, and decides; this reader only sorts connections.
"""

from __future__ import annotations

from typing import NamedTuple

HEADER_SIZE = 5
MAX_LENGTH = 16_384
"""Longest record of TLS; a hello that needs two is not read, and no client of today sends one."""

_HANDSHAKE, _CLIENT_HELLO = 22, 1
_SERVER_NAME, _ALPN = 0, 16
_HOST_NAME = 0
_MAX_EXTENSIONS, _MAX_NAMES = 64, 32
"""Most extensions of a hello, and most names in one of them; clients of today send 20, and 3."""


class ClientHello(NamedTuple):
    """Wishes of a client; empty where it has none, or where they can't be read."""

    server_name: str = ""
    protocols: tuple[str, ...] = ()


class BadHello(Exception):
    """The hello is made to cost time: it has more parts than any client sends, or parts that TLS
    forbids."""


class _Unreadable(Exception):
    """The bytes are no hello, or are cut off."""


class _Reader:
    """A position in bytes that only moves forward."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def more(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        end = self._at + count
        if end > len(self._data):
            raise _Unreadable
        taken, self._at = self._data[self._at : end], end
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, size: int) -> bytes:
        """Take a length of ``size`` bytes, and what has that length."""
        return self.take(self.number(size))


def record_size(start: bytes) -> int:
    """Return how many bytes the first record has, as far as ``start`` tells."""
    if len(start) < HEADER_SIZE:
        return HEADER_SIZE
    return HEADER_SIZE + min(int.from_bytes(start[3:HEADER_SIZE]), MAX_LENGTH)


def read(record: bytes) -> ClientHello:
    """Read the first record of a connection; what is no hello asks for nothing.

    Raises ``BadHello``.
    """
    try:
        return _read(_Reader(record))
    except (_Unreadable, UnicodeDecodeError):
        return ClientHello()


def _read(record: _Reader) -> ClientHello:
    if record.number(1) != _HANDSHAKE:
        raise _Unreadable
    record.take(2)
    message = _Reader(record.vector(2))
    if message.number(1) != _CLIENT_HELLO:
        raise _Unreadable
    hello = _Reader(message.vector(3))
    hello.take(2 + 32)
    for size in (1, 2, 1):
        hello.vector(size)
    extensions = _Reader(hello.vector(2))
    server_name, protocols = "", tuple[str, ...]()
    seen: set[int] = set()
    while extensions.more:
        kind, data = extensions.number(2), extensions.vector(2)
        if kind in seen:  # RFC 8446, 4.2
            raise BadHello(f"it has extension {kind} twice")
        seen.add(kind)
        if len(seen) > _MAX_EXTENSIONS:
            raise BadHello(f"it has more than {_MAX_EXTENSIONS} extensions")
        if kind == _SERVER_NAME:
            server_name = _host_name(_Reader(_Reader(data).vector(2)))
        elif kind == _ALPN:
            protocols = _protocols(_Reader(_Reader(data).vector(2)))
    return ClientHello(server_name, protocols)


def _host_name(names: _Reader) -> str:
    for _ in range(_MAX_NAMES):
        if not names.more:
            return ""
        kind, name = names.number(1), names.vector(2)
        if kind == _HOST_NAME:
            return name.decode("ascii")
    raise BadHello(f"it has {_MAX_NAMES} names that are no host's")


def _protocols(names: _Reader) -> tuple[str, ...]:
    protocols: list[str] = []
    while names.more:
        name = names.vector(1)
        if not name:  # RFC 7301, 3.1
            raise BadHello("it has a protocol without a name")
        if len(protocols) == _MAX_NAMES:
            raise BadHello(f"it has more than {_MAX_NAMES} protocols")
        protocols.append(name.decode("latin-1"))
    return tuple(protocols)
