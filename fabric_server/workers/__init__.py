"""Several processes that are one server: ``fabric-server up --workers N``.

    parent    holds the ports, accepts, hands each connection to a worker, starts workers again
    workers   each a whole server (``fabric_server.app``), on a core of its own

``parent`` and ``worker`` are the two programs; between them is a ``channel`` with ``messages``,
over which sockets are passed, too.  With one worker there is no parent, and this room is not used.
May import ``reload``, ``app`` and what is below them.
"""
