"""The mesh: servers forward requests to each other, one hop, to the one that holds the node.

Here is what speaks with other servers: connections, digests, forwarded requests.  What a server
decides by it is in ``routing``.  May import ``proxy`` and what is below it.
"""
