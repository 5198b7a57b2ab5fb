"""The node: dials out to a server, and serves requests with local engines.

Packages: ``registration`` (links and tunnels), ``proxy`` (requests), ``engines``, ``translation``
and ``reasoning`` (dialects), ``owner`` (commands and pauses), ``hardware``, ``cli``, and ``sdk``
for programs.  Imports ``protocol`` and ``runtime``, never the server.
"""
