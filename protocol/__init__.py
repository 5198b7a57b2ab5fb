"""The protocol between node and server; ``README.md`` beside this file is the specification.

``tunnel`` and ``control`` are state machines without input or output, ``messages`` and ``join``
their data; only ``aio`` uses asyncio.  The package may import ``runtime``, and nothing else of the
project.
"""
