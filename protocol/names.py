"""Names that both sides use in TLS."""

from __future__ import annotations

SERVER_NAME = "server.fabric"
"""Name in the server's certificate for nodes, whatever address they connect to."""

CONTROL_ALPN = "fabric-control/1"
TUNNEL_ALPN = "fabric-tunnel/1"
