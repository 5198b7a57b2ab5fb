"""The PROXY protocol, version 2: a proxy's first bytes, which say for whom it connects.

    0             12  13  14       16
    | signature   |v/c|f/p| length | addresses and ports | TLVs
                    │   └ 0x11 TCP over IPv4, 12 bytes; 0x21 TCP over IPv6, 36; 0x00 unspecified
                    └ 0x21 PROXY; 0x20 LOCAL: the proxy itself, as for its health checks

Source: HAProxy's doc/proxy-protocol.txt, 2.2.  Version 1, which is text, is not read.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from fabric_server.net.addresses import IpAddress, parse

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
FIXED_SIZE = 16
MAX_LENGTH = 2048
"""Bytes behind the fixed part; the TLVs of load balancers take some hundred."""

_LOCAL, _PROXY = 0x20, 0x21
_UNSPECIFIED, _TCP4, _TCP6 = 0x00, 0x11, 0x21
_ADDRESS_SIZE = {_UNSPECIFIED: 0, _TCP4: 12, _TCP6: 36}
_fixed = struct.Struct("!12sBBH")
_tlv = struct.Struct("!BH")


class ProxyProtocolError(ValueError):
    """The bytes are no valid header; the message says why."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """The fixed part of a header: what follows, and how long it is."""

    local: bool
    family: int
    length: int


def parse_fixed(data: bytes) -> Fixed:
    """Parse the first ``FIXED_SIZE`` bytes.  Raises ``ProxyProtocolError``."""
    signature, command, family, length = _fixed.unpack(data)
    if signature != SIGNATURE:
        raise ProxyProtocolError("no PROXY protocol version 2")
    if command not in (_LOCAL, _PROXY):
        raise ProxyProtocolError(f"unknown version or command 0x{command:02x}")
    if length > MAX_LENGTH:
        raise ProxyProtocolError(f"a header of {length} bytes")
    local = command == _LOCAL
    if not local:
        if family not in _ADDRESS_SIZE:
            raise ProxyProtocolError(f"neither TCP over IPv4 nor over IPv6: 0x{family:02x}")
        if length < _ADDRESS_SIZE[family]:
            raise ProxyProtocolError("a header shorter than its addresses")
    return Fixed(local, family, length)


def parse_rest(fixed: Fixed, data: bytes) -> IpAddress | None:
    """Parse the other ``fixed.length`` bytes; return the client's address.

    None: the connection is the proxy's own, or it does not tell.  Raises ``ProxyProtocolError``.
    """
    if fixed.local:
        return None  # the rest has to be skipped, whatever it is
    _check_tlvs(data[_ADDRESS_SIZE[fixed.family] :])
    if fixed.family == _TCP4:
        return IPv4Address(data[:4])
    if fixed.family == _TCP6:
        return parse(str(IPv6Address(data[:16])))
    return None


def _check_tlvs(data: bytes) -> None:
    """Check that the TLVs, none of which is needed, fill the header."""
    at = 0
    while at < len(data):
        if at + _tlv.size > len(data):
            raise ProxyProtocolError("a TLV that is cut off")
        _, length = _tlv.unpack_from(data, at)
        at += _tlv.size + length
    if at != len(data):
        raise ProxyProtocolError("a TLV that is longer than its header")
