"""The choice that the load balancer makes.

Not compiled, as no class of msgspec can be (docs/decisions/0086-hot-modules-may-be-compiled.md).
"""

from __future__ import annotations

from msgspec import Struct

from fabric_server.nodes.node import Engine
from protocol.messages import ModelReport


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
