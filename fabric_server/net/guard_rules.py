"""The fabric's own nftables table, as text for ``nft`` and back.  Does no input or output.

    new connections (SYN) to the ports of the API
      from loopback or a trusted proxy          accepted
      from a blocked address                    dropped, counted by ``blocked``
      from an address above the rate            dropped, counted by ``over_rate``

IPv6 addresses count by their /64, which is what one customer has.  Connections that exist go on.
The text changes what is in this table and nothing else, and ``nft`` applies all of it or nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

TABLE = "inet fabric_guard"
MAX_ENTRIES = 65_536
"""Addresses of one family in a set; when it is full, further ones are not limited."""
RATE_SECONDS = 60
"""Time after its last connection for which an address's rate is remembered."""
_PREFIX = "ffff:ffff:ffff:ffff::"
_FAMILIES = (("4", "ipv4_addr"), ("6", "ipv6_addr"))
_HOOK = "type filter hook input priority filter - 10; policy accept;"
_COUNTERS = ("blocked", "over_rate")

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, kw_only=True)
class GuardRules:
    """The rules to install."""

    ports: tuple[int, ...]
    rate: int
    """New connections of an address per second."""
    burst: int
    """New connections of an address at once."""
    trusted: tuple[Network, ...] = ()
    """Addresses that are never dropped: reverse proxies, for instance."""


@dataclass(frozen=True, kw_only=True)
class GuardStatus:
    """The table as it is in the kernel."""

    ports: tuple[int, ...]
    rate: int
    burst: int
    trusted: tuple[str, ...]
    blocked: Mapping[str, int]
    """Seconds for which each address is still blocked."""
    dropped_blocked: int
    """Connections dropped because their address is blocked."""
    dropped_over_rate: int
    interfaces: tuple[str, ...]
    """Interfaces on which xdp-filter drops the same addresses."""


def install_text(rules: GuardRules) -> str:
    """Return the text that installs the rules, or replaces those that are there.

    Blocked addresses and counters stay; rates begin anew.
    """
    lines = [
        f"add table {TABLE}",
        *(_set(f"blocked{family}", type, "flags timeout;") for family, type in _FAMILIES),
        *(
            _set(f"rates{family}", type, f"flags dynamic,timeout; timeout {RATE_SECONDS}s;")
            for family, type in _FAMILIES
        ),
        *(
            f"add set {TABLE} trusted{family} {{ type {type}; flags interval; }}"
            for family, type in _FAMILIES
        ),
        f"add set {TABLE} interfaces {{ type ifname; }}",
        *(f"add counter {TABLE} {name}" for name in _COUNTERS),
        f"add chain {TABLE} input {{ {_HOOK} }}",
        f"add chain {TABLE} api",
        f"flush chain {TABLE} input",
        f"flush chain {TABLE} api",
        *(f"flush set {TABLE} trusted{family}" for family, _ in _FAMILIES),
        *(f"flush set {TABLE} rates{family}" for family, _ in _FAMILIES),
        *_trusted_elements(rules.trusted),
        f"add rule {TABLE} input iif lo accept",
        f"add rule {TABLE} input tcp dport {{ {', '.join(map(str, rules.ports))} }} jump api",
        f"add rule {TABLE} api tcp flags & (fin|syn|rst|ack) != syn accept",
    ]
    limit = f"limit rate over {rules.rate}/second burst {rules.burst} packets"
    sources = (("4", "ip saddr", "ip saddr"), ("6", "ip6 saddr", f"ip6 saddr & {_PREFIX}"))
    for family, source, counted in sources:
        lines += [
            f"add rule {TABLE} api {source} @trusted{family} accept",
            f"add rule {TABLE} api {counted} @blocked{family} counter name blocked drop",
            f"add rule {TABLE} api add @rates{family} {{ {counted} {limit} }} "
            "counter name over_rate drop",
        ]
    return "\n".join(lines) + "\n"


def _set(name: str, type: str, more: str) -> str:
    return f"add set {TABLE} {name} {{ type {type}; size {MAX_ENTRIES}; {more} }}"


def _trusted_elements(trusted: Iterable[Network]) -> list[str]:
    """Return the commands that add networks, those inside others left out: sets overlap nowhere."""
    lines: list[str] = []
    kept: list[Network] = []
    for network in sorted(trusted, key=lambda one: (one.version, one.prefixlen)):
        if not any(_is_within(network, other) for other in kept):
            kept.append(network)
            lines.append(f"add element {TABLE} trusted{network.version} {{ {network} }}")
    return lines


def _is_within(inner: Network, outer: Network) -> bool:
    if isinstance(inner, IPv4Network):
        return isinstance(outer, IPv4Network) and inner.subnet_of(outer)
    return isinstance(outer, IPv6Network) and inner.subnet_of(outer)


def remove_text() -> str:
    """Return the text that removes the table, also if there is none."""
    return f"add table {TABLE}\ndelete table {TABLE}\n"


def interfaces_text(interfaces: Sequence[str]) -> str:
    """Return the text that notes on which interfaces xdp-filter was loaded."""
    names = ", ".join(f'"{name}"' for name in interfaces)
    return f"add element {TABLE} interfaces {{ {names} }}\n"


def block_text(addresses: Mapping[str, float]) -> str:
    """Return the text that blocks ``blocked_as`` addresses for some seconds each."""
    lines = []
    for version, family in ((4, IPv4Address), (6, IPv6Address)):
        found = [
            f"{address} timeout {max(1, round(seconds))}s"
            for address, seconds in addresses.items()
            if isinstance(ip_address(address), family)
        ]
        if found:
            lines.append(f"add element {TABLE} blocked{version} {{ {', '.join(found)} }}")
    return "".join(f"{line}\n" for line in lines)


def blocked_as(address: str) -> str | None:
    """Return the form in which an address is blocked: IPv6 by its /64.

    None if it is none that may be blocked: loopback, for instance.
    """
    try:
        ip = ip_address(address.partition("%")[0])
    except ValueError:
        return None
    if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip.is_loopback or ip.is_unspecified or ip.is_link_local or ip.is_multicast:
        return None
    if isinstance(ip, IPv6Address):
        return str(ip_network((int(ip) >> 64 << 64, 64)).network_address)
    return str(ip)


def parse_status(listing: Mapping[str, Any]) -> GuardStatus:
    """Read the JSON of ``nft -j list table``.  Rules that are not as installed read as 0."""
    items = [(kind, item) for one in listing.get("nftables", ()) for kind, item in one.items()]
    counters = {item["name"]: item["packets"] for kind, item in items if kind == "counter"}
    sets = {item["name"]: item.get("elem", []) for kind, item in items if kind == "set"}
    ports, rate, burst = (), 0, 0
    for kind, item in items:
        for part in item.get("expr", ()) if kind == "rule" else ():
            if isinstance(right := part.get("match", {}).get("right"), int | dict):
                ports = (right,) if isinstance(right, int) else tuple(right.get("set", ()))
            for statement in part.get("set", {}).get("stmt", ()):
                limit = statement.get("limit", {})
                rate, burst = limit.get("rate", 0), limit.get("burst", 0)
    blocked = {}
    for element in [*sets.get("blocked4", []), *sets.get("blocked6", [])]:
        inner = element.get("elem", {}) if isinstance(element, dict) else {"val": element}
        blocked[str(inner.get("val"))] = int(inner.get("expires", 0))
    trusted = [_network(one) for one in [*sets.get("trusted4", []), *sets.get("trusted6", [])]]
    return GuardStatus(
        ports=ports,
        rate=rate,
        burst=burst,
        trusted=tuple(trusted),
        blocked=blocked,
        dropped_blocked=counters.get("blocked", 0),
        dropped_over_rate=counters.get("over_rate", 0),
        interfaces=tuple(map(str, sets.get("interfaces", []))),
    )


def _network(element: Any) -> str:
    if isinstance(element, dict) and "prefix" in element:
        return f"{element['prefix']['addr']}/{element['prefix']['len']}"
    return str(element)
