"""What a request wants of the node that takes it: all that admission and routing look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum


class Priority(IntEnum):
    """Lower is sooner."""

    HIGH = 0
    MEDIUM = 1
    LOW = 2


@dataclass(slots=True)
class Requirements:
    model: str
    key_id: str = ""
    """Whose turn it is, where several wait."""
    priority: Priority = Priority.MEDIUM
    needs: frozenset[str] = frozenset()
    """Of ``vision``, ``tools``, ``embeddings``: what the engine must be able to, where it tells."""
    kinds: frozenset[str] | None = None
    """Of engines that may take it; None is all."""
    regions: frozenset[str] | None = None
    """Of nodes that may take it, and no others ever; None is all."""
    prefix: tuple[int, ...] = ()
    """Hashes of the prompt's growing beginnings, the shortest first: who has seen the longest of
    them has most of it in its cache."""
    tokens: int = 0
    """The prompt's length, estimated; 0 is not known."""
    tried: list[str] = field(default_factory=list)
    """Nodes that are not to be asked again."""
    path: str = ""
    """What the engine must be asked, as nodes know it; empty is anything."""
