"""The composition root: ``App`` builds a server from its settings and starts and stops its parts.

``backends`` are the store, the cache and the bus; the ``control_plane`` is the nodes' side, the
``data_plane`` the clients', ``listeners`` are the four ports.  May import every room of the server
but ``cli`` and ``reload``.
"""

from fabric_server.app.app import App

__all__ = ["App"]
