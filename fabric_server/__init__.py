"""The server: it takes clients' requests, and sends each through a tunnel to a node's engine.

A package for each concern; pyproject.toml has their order, in which imports run downward.  May
import ``ledger``, ``sql``, ``protocol`` and ``runtime``; never ``fabric_client`` or ``consumer``.
"""
