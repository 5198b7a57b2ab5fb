"""Nodes and their engines: what they serve, how busy they are, how they are reached."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from functools import lru_cache

from fabric_server.dialects.endpoints import DEFAULT_PATHS
from fabric_server.nodes.candidates import Segments
from fabric_server.nodes.circuit_breaker import Breakers, CircuitBreaker, Scope
from fabric_server.nodes.held_slots import HeldSlots
from fabric_server.nodes.offers import Offer, offers_of
from fabric_server.nodes.slot_limit import SlotLimit
from fabric_server.nodes.standing import (
    CUT_OFF,
    FULL,
    NOTHING,
    RESTING,
    ROOM,
    UNLISTED,
    Standing,
    make_standing,
)
from protocol.aio.link import LinkDriver
from protocol.aio.server import ServerTunnel
from protocol.messages import EngineReport, Heartbeat, ModelReport, Register
from protocol.tunnel.keepalive import QUIET_SECONDS

SHARED_STREAMS = 32
"""Streams up to which a tunnel is filled before the node's next one gets some."""
KEPT_FREE = 16
"""Slots among which one is kept from a key that has all the others, where several keys use an
engine."""


@lru_cache(256)
def _paths(reported: tuple[str, ...]) -> frozenset[str]:
    """Return the paths as a set, which engines that report the same share."""
    return frozenset(reported) or DEFAULT_PATHS


class Engine:
    """One engine of one node, with its slots: a candidate for routing."""

    __slots__ = (
        "_active",
        "_lists",
        "breakers",
        "elsewhere",
        "healthy",
        "held",
        "implausible_usage",
        "name",
        "node",
        "offers",
        "paths",
        "report",
        "slot_limit",
        "slots",
        "standing",
    )

    def __init__(
        self, node: Node, report: EngineReport, on_breakers: Callable[[Engine, str], None]
    ) -> None:
        """``on_breakers`` is called when breakers for a model have changed."""
        self.node = node
        self.name = report.name
        self._active = 0
        self.held = HeldSlots()
        """The requests that hold slots, by their keys."""
        self.breakers = Breakers(lambda model: on_breakers(self, model))
        self.implausible_usage = 0
        """Answers whose token counts were not plausible."""
        self.slot_limit: SlotLimit | None = None
        """Set while it gets fewer requests than it has slots for."""
        self._lists: list[Segments[Engine]] = []
        self.standing = UNLISTED
        """The engine's entry in the lists of candidates."""
        self.offers: dict[str, Offer] = {}
        """The engine's offers, by the names by which its models can be asked for."""
        self._set(report, offers_of(report, {}))
        self.limit_slots()

    def update(self, report: EngineReport, offers: dict[str, Offer]) -> None:
        """Take in a report with its offers; no list has the engine any more for one that is
        gone."""
        before = self.offers
        self._set(report, offers)
        if offers is not before:
            for segments in self._lists:
                segments.change_offer(self, before[segments.model])
        self.limit_slots()

    def _set(self, report: EngineReport, offers: dict[str, Offer]) -> None:
        self.healthy = report.healthy
        self.report = report
        """The last report; what is looked at for each request has attributes of its own."""
        self.offers = offers
        self.paths = _paths(tuple(report.paths))
        """Paths that it supports, natively or translated on its node."""
        self.elsewhere = report.elsewhere
        """Slots held by requests that its node got from another server."""

    @property
    def models(self) -> dict[str, ModelReport]:
        """Return the reports of its models by their full names."""
        return {model.name: model for model in self.report.models}

    @property
    def active(self) -> int:
        """Return the requests that hold a slot, until the node confirms that their work has
        stopped."""
        return self._active

    @active.setter
    def active(self, active: int) -> None:
        self._active = active
        self.refresh()

    @property
    def kind(self) -> str:
        return self.report.kind

    @property
    def reported_slots(self) -> int:
        return self.report.slots

    @property
    def problem(self) -> str | None:
        return self.report.problem

    @property
    def paused(self) -> bool:
        """Return whether its node's owner keeps requests away."""
        return self.report.paused

    @property
    def back_at(self) -> float:
        """Return the earliest end of a pause, in Unix seconds; 0 when it is not known."""
        return self.report.back_at

    @property
    def has_room(self) -> bool:
        return self.healthy and self._active + self.elsewhere < self.slots and self.node.reachable

    def has_room_for(self, key_id: str, now: float) -> bool:
        """Return whether a request of this key may have a slot now."""
        return (  # has_room and lets, without two more calls for each engine that is compared
            self.healthy
            and self._active + self.elsewhere < self.slots
            and self.node.reachable
            and (self.slots < KEPT_FREE or self.held.of(key_id) < self.most_per_key(now))
        )

    def lets(self, key_id: str, now: float) -> bool:
        """Return whether one more slot would be within the key's share."""
        return self.slots < KEPT_FREE or self.held.of(key_id) < self.most_per_key(now)

    def most_per_key(self, now: float) -> int:
        """Return how many slots one key may hold: of many that are shared, some are kept free.

        So whoever asks for little beside one that asks for all rarely has to wait.
        """
        kept = self.slots // KEPT_FREE
        return self.slots - kept if kept and self.held.is_shared(now) else self.slots

    @property
    def may_serve(self) -> bool:
        """Return whether it is worth waiting for."""
        return self.healthy and self.report.slots > 0 and self.node.connected

    def is_able(self, path: str) -> bool:
        """Return whether it could serve a request for this path if it had room."""
        return self.may_serve and bool(self.node.tunnels) and (not path or path in self.paths)

    def take(self, key_id: str, now: float) -> None:
        self._active += 1
        self.held.take(key_id, now)
        if self._lists and self._active + self.elsewhere >= self.slots:
            self.refresh()

    def give_back(self, key_id: str) -> None:
        self._active -= 1
        self.held.give_back(key_id)

    def limit_slots(self) -> None:
        """Set the slots that are used: those reported, or fewer while a limit is set."""
        limit, reported = self.slot_limit, self.report.slots
        self.slots = reported if limit is None else min(limit.slots, reported)
        self.refresh()

    # ── lists of candidates ───────────────────────────────────────────────────────────────────

    def join(self, segments: Segments[Engine]) -> None:
        """Join a list, which is updated from now on."""
        if not self._lists:
            self.standing = self._stand()
        self._lists.append(segments)

    def part(self, segments: Segments[Engine]) -> None:
        self._lists.remove(segments)
        if not self._lists:
            self.standing = UNLISTED

    def refresh(self) -> None:
        """Update the lists of candidates, after anything that has changed here or at its node."""
        if self._lists and (standing := self._stand()) != self.standing:
            before, self.standing = self.standing, standing
            for segments in self._lists:
                segments.update(self, before, standing)

    def _stand(self) -> Standing:
        if not self.may_serve:
            return NOTHING
        if not self.slots:
            segment = RESTING
        elif self._active + self.elsewhere >= self.slots:
            segment = FULL
        else:
            segment = ROOM if self.node.reachable else CUT_OFF
        return make_standing(segment, self.slots, self.paths if self.node.tunnels else None)

    def allows(self, model: str, now: float, path: str = "") -> bool:
        """Return whether its breakers let a request through."""
        return not self.breakers or self.breakers.allow(model, now, path)

    def breaker(self, scope: Scope) -> CircuitBreaker:
        """Return the breaker of this scope; make it, where nothing failed so far."""
        return self.breakers.make(scope)

    def names(self) -> Iterable[str]:
        """Return the names by which its models can be asked for."""
        return self.offers.keys()

    def serves(self, model: str) -> bool:
        """Return whether the model is one of ``names``, busy or not."""
        return model in self.offers

    def __repr__(self) -> str:
        return f"<Engine {self.node.id}/{self.name} {self._active}/{self.slots}>"


class Node:
    """One registration of a node; a new registration, with a new epoch, is a new object."""

    __slots__ = (
        "_drained",
        "_draining",
        "connected_at",
        "engines",
        "epoch",
        "heartbeat",
        "id",
        "instance",
        "link",
        "name",
        "platform",
        "region",
        "release",
        "session",
        "tunnels",
    )

    remote = False
    """Whether the node stands for engines at another server; see ``nodes.home``."""

    def __init__(
        self, id: str, epoch: int, register: Register, link: LinkDriver | None, at: float
    ) -> None:
        self.id = id
        self.epoch = epoch
        self.name = register.name
        self.platform = register.platform
        self.region = register.region
        """Region that it reports; empty when it reports none."""
        self.release = register.release
        self.instance = register.instance
        """Id of the node's process; empty when it has none."""
        self.session = secrets.token_bytes(16)
        self.link = link
        self.tunnels: list[ServerTunnel] = []
        """The one that is filled comes first."""
        self.engines: dict[str, Engine] = {}
        self._draining = self._drained = False
        self.connected_at = at
        """Unix seconds."""
        self.heartbeat: Heartbeat | None = None

    @property
    def draining(self) -> bool:
        """Return whether the node has announced that it leaves."""
        return self._draining

    @draining.setter
    def draining(self, draining: bool) -> None:
        self._draining = draining
        self.refresh()

    @property
    def drained(self) -> bool:
        """Return whether the operator wants it to get no new requests."""
        return self._drained

    @drained.setter
    def drained(self, drained: bool) -> None:
        self._drained = drained
        self.refresh()

    def refresh(self) -> None:
        """Update the lists of candidates, after a change of what can be reached at this node."""
        for engine in self.engines.values():
            engine.refresh()

    @property
    def connected(self) -> bool:
        """Return whether it takes new streams: at once, or as soon as its tunnels are up."""
        return self.link is not None and not self._draining and not self._drained

    @property
    def reachable(self) -> bool:
        """Return whether a new stream can be opened now."""
        if self.link is not None and not self._draining and not self._drained:
            for tunnel in self.tunnels:  # a loop, because it runs for each candidate
                if tunnel.connection.usable:
                    return True
        return False

    def tunnel(self, now: float) -> ServerTunnel | None:
        """Return the usable tunnel for a new stream; None if there is none.

        Streams that share a tunnel share its writes, so one is filled first, if it has just
        received something.  Otherwise the one with the fewest is next; of several, the one that
        last received something, which is the least likely to be dead without notice.  It is then
        looked at first, so the others are looked at only if it is full or was silent for a while.
        """
        best, fewest, heard = None, 1 << 30, 0.0
        for tunnel in self.tunnels:
            connection = tunnel.connection
            active, received = connection.active, connection.keepalive.last_received
            if active < SHARED_STREAMS and received > now - QUIET_SECONDS and connection.usable:
                best = tunnel
                break
            if (active < fewest or (active == fewest and received > heard)) and connection.usable:
                best, fewest, heard = tunnel, active, received
        if best is not None and best is not self.tunnels[0]:
            self.tunnels.remove(best)
            self.tunnels.insert(0, best)
        return best

    @property
    def active(self) -> int:
        return sum(engine.active for engine in self.engines.values())

    @property
    def slots(self) -> int:
        return sum(engine.slots for engine in self.engines.values())

    @property
    def problem(self) -> str:
        """Return why no engine of it gets requests, as reported; empty when one does."""
        engines = self.engines.values()
        if any(engine.healthy and engine.reported_slots > 0 for engine in engines):
            return ""
        problems = dict.fromkeys(engine.problem or "an engine is down" for engine in engines)
        return "; ".join(problems)[:1024] or "no engine"

    def __repr__(self) -> str:
        leaving = self._draining or self._drained
        state = "gone" if self.link is None else "draining" if leaving else "connected"
        return f"<Node {self.id} epoch {self.epoch} {state} tunnels={len(self.tunnels)}>"
