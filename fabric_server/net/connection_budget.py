"""Budgets of connections: each port's share of the process's file descriptors.

A connection has a place in the budget of its port from when it is accepted until it is closed:

    stranger ── a valid key, or a node's registration ──> known ──┐
       │                                                          ├── closed ──> the place is free
       └── shed: the oldest goes when a newcomer finds no place ──┘

So whoever shows nothing, or shows what anybody has, keeps no place for long when places are scarce,
and takes none from those who are known.  A newcomer for whom no stranger can be shed is refused.
All work for one connection is the same, however many there are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from fabric_server.net.addresses import IpAddress, origin_of
from fabric_server.net.known_addresses import KnownAddresses
from fabric_server.net.trusted_proxies import NO_PROXIES, TrustedProxies


@dataclass(frozen=True, slots=True)
class Places:
    """The connections that a port may have at once."""

    total: int
    per_address: int
    """From one IPv4 address, or one /64 of IPv6.  It binds neither loopback peers nor trusted
    proxies, which have many clients behind them."""
    strangers_only: bool = False
    """``per_address`` counts strangers only: a site may have any number of nodes."""


class Peer:
    """The other end of an accepted connection, and its place in the port's budget."""

    __slots__ = ("_budget", "_origin", "_proxies", "drop", "exempt", "ip", "known", "proxied")

    def __init__(
        self, ip: IpAddress, proxies: TrustedProxies = NO_PROXIES, budget: Budget | None = None
    ) -> None:
        self.ip = ip
        self.known = False
        self.proxied = False
        """The address is what a proxy said by the PROXY protocol."""
        self.exempt = ip.is_loopback or proxies.trusts(ip)
        self.drop: Callable[[], object] | None = None
        """Closes the connection at once."""
        self._proxies = proxies
        self._budget = budget
        self._origin = ""

    def __repr__(self) -> str:
        return f"<Peer {self.ip} {'known' if self.known else 'stranger'}>"

    def client_address(self, forwarded_for: bytes | None) -> str:
        """Return the address of the client, which ``X-Forwarded-For`` of a trusted proxy tells."""
        return str(self._proxies.client(self.ip, forwarded_for))

    def recognise(self) -> None:
        """Keep the connection from now on when others are shed."""
        if not self.known:
            self.known = True
            if self._budget is not None:
                self._budget.on_recognised(self, self._origin)

    def suspect(self) -> None:
        """Report the address for the kernel to block, unless somebody known may be there."""
        budget = self._budget
        if budget is not None and not (
            self.exempt or self.proxied or origin_of(self.ip) in budget.known
        ):
            budget.on_suspect(self)

    def release(self) -> None:
        """Give back the place: the connection is closed.  May be called again."""
        self.drop = None
        budget, self._budget = self._budget, None
        if budget is not None:
            budget.on_released(self, self._origin)

    def enter(self) -> str | None:
        """Take a place; return why there is none, by ``handshake.REASONS``."""
        budget = self._budget
        if budget is None:
            return None
        self._origin = origin_of(self.ip)
        reason = budget.admit(self, self._origin)
        if reason is not None:
            self._budget = None
        return reason

    def move(self, ip: IpAddress) -> str | None:
        """Take a place as the client at ``ip``, for whom a trusted proxy connects, instead."""
        budget = self._budget
        if budget is not None:
            budget.on_released(self, self._origin)
        self.stand_for(ip)
        return self.enter()

    def stand_for(self, ip: IpAddress) -> None:
        """Be the client at ``ip`` instead, for whom a trusted proxy connects; without a place."""
        self.ip, self.proxied = ip, True
        self.exempt = ip.is_loopback or self._proxies.trusts(ip)


class _Origin:
    """The connections from one address."""

    __slots__ = ("count", "strangers")

    def __init__(self) -> None:
        self.count = 0
        self.strangers: OrderedDict[Peer, None] = OrderedDict()


class Budget:
    """The places of one port; ``used`` and ``places`` are metrics."""

    def __init__(
        self,
        places: Places,
        on_shed: Callable[[str, Peer], None],
        *,
        on_suspect: Callable[[Peer], None] = lambda peer: None,
        known: KnownAddresses | None = None,
    ) -> None:
        """``on_shed`` is called with the reason before a connection is dropped, ``on_suspect`` for
        each ``Peer.suspect`` of an address that is not in ``known``, which ports may share."""
        self.places = places
        self.used = 0
        self.on_suspect = on_suspect
        self.known = KnownAddresses() if known is None else known
        self._on_shed = on_shed
        # Ordered dictionaries, because a dictionary looks for its first item behind the places of
        # all that were deleted before it.
        self._strangers: OrderedDict[Peer, None] = OrderedDict()
        self._origins: dict[str, _Origin] = {}

    def __repr__(self) -> str:
        return f"<Budget {self.used}/{self.places.total} strangers={self.strangers}>"

    @property
    def strangers(self) -> int:
        """Connections that may be shed."""
        return len(self._strangers)

    @property
    def origins(self) -> int:
        """Addresses that have connections."""
        return len(self._origins)

    def admit(self, peer: Peer, key: str) -> str | None:
        """Give a newcomer a place, perhaps a stranger's; return the reason when there is none."""
        places = self.places
        origin = self._origins.get(key)
        if origin is not None and origin.count >= places.per_address and not peer.exempt:
            if not origin.strangers:
                return "full_address"
            self._shed(next(iter(origin.strangers)), "shed_address")
        elif self.used >= places.total:
            if not self._strangers:
                return "full"
            self._shed(next(iter(self._strangers)), "shed")
        origin = self._origins.get(key)
        if origin is None:
            origin = self._origins[key] = _Origin()
        origin.count += 1
        self.used += 1
        origin.strangers[peer] = self._strangers[peer] = None
        return None

    def on_recognised(self, peer: Peer, key: str) -> None:
        origin = self._origins[key]
        del origin.strangers[peer], self._strangers[peer]
        self.known.opened(key)
        if self.places.strangers_only:
            origin.count -= 1
            self._forget(key, origin)

    def on_released(self, peer: Peer, key: str) -> None:
        self.used -= 1
        if peer.known:
            self.known.closed(key)
        if not peer.known:
            origin = self._origins[key]
            del origin.strangers[peer], self._strangers[peer]
        elif self.places.strangers_only:
            return
        else:
            origin = self._origins[key]
        origin.count -= 1
        self._forget(key, origin)

    def _forget(self, key: str, origin: _Origin) -> None:
        if not origin.count:
            del self._origins[key]

    def _shed(self, peer: Peer, reason: str) -> None:
        self._on_shed(reason, peer)
        drop = peer.drop
        peer.release()
        if drop is not None:
            drop()
