"""The public HTTP/1.1 port: connections, parsing, requests and their responses, routes.

Handlers get a ``Request`` and know nothing of sockets.  May import auth, net and dialects, and
nothing above: neither gateway nor proxy.
"""
