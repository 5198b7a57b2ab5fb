"""Hostile bytes against everything that reads from a peer: ``python -m tests.fuzz --seconds 60``.

A case is a number: the same number makes the same bytes, so that what failed can be run again.
"""
