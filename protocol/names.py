"""The names that both sides must give in TLS."""

from __future__ import annotations

SERVER_NAME = "server.fabric"
"""In the certificate that a server shows to nodes, whatever address they dialled."""

CONTROL_ALPN = "fabric-control/1"
TUNNEL_ALPN = "fabric-tunnel/1"
