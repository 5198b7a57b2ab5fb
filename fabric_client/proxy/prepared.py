"""A request that was prepared, as ``preparation`` returns it.

Not compiled, as no class of msgspec can be (docs/decisions/0086-hot-modules-may-be-compiled.md).
"""

from __future__ import annotations

from msgspec import Struct

from fabric_client.translation import LocalReply, ResponseFilter


class Prepared(Struct, frozen=True):
    """A request that ``prepare_whole`` has prepared, without the engine's body."""

    reply: LocalReply | None
    """The response of the node's own; the rest means nothing then."""
    path: str = ""
    response_filter: ResponseFilter | None = None
    usage: tuple[int, int] | None = None
    """The place of the usage in the answer, as ``find_usage`` returns it."""
