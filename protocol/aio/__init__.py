"""Drivers on asyncio: they move bytes between transports and the state machines.

May import all of ``protocol``; decisions about the protocol belong in ``tunnel`` and ``control``.
"""
