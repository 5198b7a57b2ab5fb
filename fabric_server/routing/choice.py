"""The choice of an engine for one request, and how a stream to it is opened."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct, structs

from fabric_server.nodes.home import HomeNode
from fabric_server.nodes.node import Engine
from fabric_server.routing.criteria import EngineTerms, Priority, Requirements
from fabric_server.routing.variants import BegunAnswer, WantedVariant
from protocol.aio.server import AnswerHandler, ServerStream
from protocol.mesh import REQUEST, ForwardedRequest
from protocol.messages import ModelReport, RequestHead

_AT_HOME = "#"
"""Between the name of a home and that of its node, in ``Requirements.excluded_nodes``."""
_NO_TERMS = EngineTerms()


class Opener(Protocol):
    """Opens the stream of one request: a tunnel of the node, or the way over the node's home."""

    def open(
        self, head: RequestHead, handler: AnswerHandler, body: bytes = b"", *, ended: bool
    ) -> ServerStream: ...


class Choice(Struct, frozen=True, gc=False):
    """The engine that was picked, and why."""

    engine: Engine
    route_reason: str
    """Explanation for people: ASCII, short, without names or addresses."""
    cold_start: bool = False
    """The model has to be loaded first."""
    report: ModelReport | None = None
    """The engine's report of the model when it was chosen."""
    key_id: str = ""
    """The key of the request that holds the slot."""
    forwarding: Forwarding | None = None
    """The way of the request if another server is to choose the engine: ``engine`` stands for all
    that serve the same there."""

    def opener(self, now: float) -> Opener | None:
        """Return what opens the stream; None if nothing can now."""
        forwarding = self.forwarding
        if forwarding is None:
            return self.engine.node.tunnel(now)
        return forwarding if forwarding.home.reachable else None

    @property
    def refused(self) -> bool:
        """Return whether another server had no slot, although it was thought to have one."""
        return self.forwarding is not None and self.forwarding.refused

    @property
    def node_id(self) -> str:
        """Return the id of the node that answers, or is asked."""
        return self.engine.node.id if self.forwarding is None else self.forwarding.node_id

    @property
    def engine_name(self) -> str:
        return self.engine.name if self.forwarding is None else self.forwarding.engine_name


class Forwarding:
    """One attempt that goes to another server, and what that server tells of it."""

    __slots__ = (
        "_engine",
        "_granted",
        "_requirements",
        "engine_name",
        "home",
        "node_id",
        "refused",
    )

    def __init__(
        self,
        home: HomeNode,
        engine: Engine,
        requirements: Requirements,
        *,
        granted: bool = False,
    ) -> None:
        """``granted``: the home holds a slot for the request."""
        self.home = home
        self.refused = False
        """The home had no slot: nothing was done, and the request may wait there."""
        self._engine = engine
        self.node_id = home.id
        self.engine_name = ""
        self._requirements = requirements
        self._granted = granted

    def open(
        self, head: RequestHead, handler: AnswerHandler, body: bytes = b"", *, ended: bool
    ) -> ServerStream:
        forwarded = forwarded_head(head, self._requirements, granted=self._granted)
        return self.home.peer.open(forwarded, handler, self, body, ended=ended)

    def on_refused(self) -> None:
        """Note that the home has no slot now."""
        self.refused = True
        engine, excluded = self._engine, self._requirements.excluded_nodes
        if self.home.id in excluded:
            excluded.remove(self.home.id)
        engine.elsewhere = engine.slots  # until it tells more
        engine.refresh()

    def on_engine(self, node_id: str, engine: str) -> None:
        """Note which engine has got the request, before its answer or failure is told: if it fails,
        the home may have others."""
        self.node_id, self.engine_name = node_id, engine
        requirements, home = self._requirements, self.home
        excluded = requirements.excluded_nodes
        excluded.append(f"{home.id}{_AT_HOME}{node_id}")
        tried = sum(one.startswith(f"{home.id}{_AT_HOME}") for one in excluded)
        if tried < home.count_nodes(requirements.model) and home.id in excluded:
            excluded.remove(home.id)


def forward(choice: Choice, requirements: Requirements, *, granted: bool = False) -> Choice:
    """Return the choice with the way to the engine's home, if that is another server."""
    node = choice.engine.node
    if not isinstance(node, HomeNode):
        return choice
    return structs.replace(
        choice, forwarding=Forwarding(node, choice.engine, requirements, granted=granted)
    )


def forwarded_head(
    head: RequestHead, requirements: Requirements, *, purpose: int = REQUEST, granted: bool = False
) -> ForwardedRequest:
    """Return what opens a request's stream at another server."""
    terms = requirements.terms or _NO_TERMS
    variant, begun = terms.variant, terms.begun
    regions, kinds = requirements.regions, terms.kinds
    return ForwardedRequest(
        head.request_id,
        head.engine,
        head.method,
        requirements.path,
        head.headers,
        head.body_size,
        head.deadline_ms,
        head.attempt,
        purpose,
        requirements.model,
        requirements.key_id,
        int(requirements.priority),
        tuple(requirements.capabilities),
        None if regions is None else tuple(regions),
        requirements.tokens,
        requirements.prefix,
        tuple(one.rpartition(_AT_HOME)[2] for one in requirements.excluded_nodes),
        None if kinds is None else tuple(kinds),
        "" if variant is None else variant.quantization,
        "" if variant is None else variant.digest,
        "" if begun is None else begun.kind,
        None if begun is None else begun.report,
        granted,
    )


def forwarded_requirements(head: ForwardedRequest) -> Requirements:
    """Return the requirements of a request that another server has forwarded to this one."""
    variant = begun = None
    if head.quantization or head.digest:
        variant = WantedVariant(head.quantization, head.digest)
    if head.begun is not None:
        begun = BegunAnswer(head.begun_kind, head.begun)
    kinds = None if head.kinds is None else frozenset(head.kinds)
    return Requirements(
        head.model,
        head.key_id,
        Priority(head.priority),
        frozenset(head.capabilities),
        EngineTerms(kinds, variant, begun, here=True),
        None if head.regions is None else frozenset(head.regions),
        head.prefix,
        head.tokens,
        excluded_nodes=list(head.excluded),
        path=head.path,
    )
