"""Requirements of a request: all that admission and routing look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from fabric_server.routing.variants import BegunAnswer, WantedVariant


class Priority(IntEnum):
    """Priority levels of the queue; a lower number is served sooner."""

    HIGH = 0
    MEDIUM = 1
    LOW = 2

    @property
    def label(self) -> bytes:
        """Return its name as headers have it."""
        return _LABELS[self]


_LABELS = tuple(one.name.lower().encode() for one in Priority)


@dataclass(frozen=True, slots=True)
class EngineTerms:
    """Conditions on the engine beside its node and paths; never relaxed."""

    kinds: frozenset[str] | None = None
    """Kinds of engines that can take the request; None is all."""
    variant: WantedVariant | None = None
    """The weights that the client asks for; None is any."""
    begun: BegunAnswer | None = None
    """The answer that is to be continued, by the same weights; None: the answer begins."""
    here: bool = False
    """Only nodes of this server can take it: another one has forwarded it."""


HERE = EngineTerms(here=True)


@dataclass(slots=True)
class Requirements:
    """Constraints and hints for the choice of an engine."""

    model: str
    key_id: str = ""
    """The flow in the fair queue."""
    priority: Priority = Priority.MEDIUM
    capabilities: frozenset[str] = frozenset()
    """Capabilities that the engine should have, where it reports any: ``vision``, ``tools``,
    ``embeddings``."""
    terms: EngineTerms | None = None
    """Most requests have none."""
    regions: frozenset[str] | None = None
    """Regions of the nodes that may take it, never relaxed; None is all."""
    prefix: tuple[int, ...] = ()
    """Hashes of the prompt's growing prefixes, the shortest first: an engine that was given the
    longest of them has most of the prompt in its cache."""
    tokens: int = 0
    """The estimated length of the prompt; 0 is unknown."""
    sent_bytes: int = 0
    """Bytes of the body that engines get, as far as they are kept."""
    media: int = 0
    """Images in the body."""
    prompt: bytes = b""
    """The body, if it is small: its prompt is read where no engine tells its tokens."""
    media_tokens: int = 0
    """Estimated tokens of the prompt, if it is large and has media."""
    output_limit: int | None = None
    """The most tokens of an answer that the client allows; None: any."""
    excluded_nodes: list[str] = field(default_factory=list)
    """Nodes that must not be tried again."""
    path: str = ""
    """The path that the engine must support, as nodes report it; empty is any."""

    @property
    def stays(self) -> bool:
        """Return whether only nodes of this server can take it."""
        return self.terms is not None and self.terms.here
