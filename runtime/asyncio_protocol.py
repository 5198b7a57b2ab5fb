"""Protocols of asyncio whose classes are not made of ``asyncio.Protocol``.

Event loops look at the methods alone, and a class of ``asyncio.Protocol`` can't be compiled
(docs/decisions/0086-hot-modules-may-be-compiled.md).
"""

from __future__ import annotations

import asyncio
from typing import Protocol


class AsyncioProtocol(Protocol):
    """The methods of ``asyncio.Protocol``, which every class of that has as well."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None: ...
    def data_received(self, data: bytes) -> None: ...
    def eof_received(self) -> bool | None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...
