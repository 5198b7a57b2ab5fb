"""One tunnel without a clock: both ends, and the bytes between them."""

from __future__ import annotations

from dataclasses import dataclass, field

from protocol.tunnel.base import Role
from protocol.tunnel.connection import Connection
from protocol.tunnel.node import NodeConnection
from protocol.tunnel.server import ServerConnection


@dataclass(eq=False)
class Pair:
    """One tunnel: both ends, and the bytes between them."""

    server: ServerConnection
    node: NodeConnection
    wires: dict[Role, bytearray] = field(
        default_factory=lambda: {role: bytearray() for role in Role}
    )
    cut: bool = False

    def side(self, role: Role) -> Connection:
        return self.server if role is Role.SERVER else self.node
