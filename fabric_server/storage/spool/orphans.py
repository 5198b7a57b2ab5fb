"""Orphaned spools: what ended servers left behind is moved on by one that runs.

A server that takes over from one that still drains has a spool of its own, ``spool-2`` and so on.
Records that remain in either, because the store was away or the server was killed, are moved by
whichever server of that directory runs next.  Rows have keys: nothing is written twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from fabric_server.storage.spool.spool import Spool, SpoolInUse
from ledger.batch_writer import Source
from runtime.errors import StoreError

log = logging.getLogger("fabric.spool")

LOOK_SECONDS = 2.0
"""Time between two searches for orphaned spools."""


class Writer(Protocol):
    """Moves records, as ``BatchWriter`` does."""

    async def run(self) -> None: ...

    def leave(self) -> None: ...


async def move_orphaned_spools(
    own: Path,
    limit: int,
    make_writer: Callable[[Source], Writer],
    *,
    every: float = LOOK_SECONDS,
) -> None:
    """Search for spools beside ``own`` every so many seconds, until cancelled; move each once.

    ``make_writer`` returns a batch writer that writes where the records of our own spool go.
    """
    moved: set[Path] = set()
    skipped: dict[Path, str] = {}
    while True:
        for directory in sorted(own.parent.glob("spool*")):
            if directory != own and directory not in moved and (directory / "lock").exists():
                try:
                    await _move(directory, limit, make_writer)
                except SpoolInUse:
                    continue  # its server still drains
                except StoreError as error:  # perhaps only for now: descriptors, memory, space
                    if skipped.get(directory) != str(error):
                        log.error("an orphaned spool is skipped", extra={"reason": str(error)})
                    skipped[directory] = str(error)
                else:
                    moved.add(directory)
        await asyncio.sleep(every)


async def _move(directory: Path, limit: int, make_writer: Callable[[Source], Writer]) -> None:
    spool = await asyncio.to_thread(Spool.open, directory, limit=limit)
    try:
        count = sum(spool.waiting.values())
        if not count:
            return
        about = {"spool": str(directory), "records": count}
        log.info("moving the records of an orphaned spool", extra=about)
        writer = make_writer(spool)
        writing = asyncio.get_running_loop().create_task(writer.run())
        flushing = asyncio.get_running_loop().create_task(spool.flush())
        try:
            await asyncio.wait((writing, flushing), return_when=asyncio.FIRST_COMPLETED)
            if not flushing.done():
                await writing  # raises why it has ended
        finally:
            writing.cancel()
            flushing.cancel()
            await asyncio.gather(writing, flushing, return_exceptions=True)
            writer.leave()
        log.info("moved the records of an orphaned spool", extra=about)
    finally:
        await spool.close()
