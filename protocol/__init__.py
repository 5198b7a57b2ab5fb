"""The words a node and a server say to each other, without any input or output of its own.

``frames`` and ``connection`` are the tunnel, ``messages`` and ``link`` the control link.  Only
``protocol.aio`` touches asyncio.  ``README.md`` beside this file is the specification.
"""
