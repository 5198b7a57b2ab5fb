"""What another server's spool beside ours still holds, once that server has gone.

A server that takes over from one that still drains has a spool of its own, ``spool-2`` and so on.
What either leaves behind, be it that the store was away or that it was killed, is moved on by
whichever server of that directory runs next.  Rows have keys: nothing is written twice.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from fabric_server.storage.spool import Spool, SpoolInUse
from ledger.batch_writer import BatchWriter, Source
from runtime.errors import StoreError

log = logging.getLogger("fabric.spool")

LOOK_SECONDS = 2.0


async def move_orphaned_spools(
    own: Path,
    limit: int,
    make_worker: Callable[[Source], BatchWriter],
    *,
    every: float = LOOK_SECONDS,
) -> None:
    """Look for spools beside ``own`` every so many seconds, until cancelled; each is moved once.

    ``make_worker`` gives one that takes records where those of our own go.
    """
    settled: set[Path] = set()
    while True:
        for directory in sorted(own.parent.glob("spool*")):
            if directory != own and directory not in settled and (directory / "lock").exists():
                try:
                    await _move(directory, limit, make_worker)
                except SpoolInUse:
                    continue  # its server still drains
                except StoreError as error:
                    log.error("a spool is left as it is", extra={"reason": str(error)})
                settled.add(directory)
        await asyncio.sleep(every)


async def _move(directory: Path, limit: int, make_worker: Callable[[Source], BatchWriter]) -> None:
    spool = await asyncio.to_thread(Spool.open, directory, limit=limit)
    try:
        count = sum(spool.waiting.values())
        if not count:
            return
        log.info("moving what a server left", extra={"spool": str(directory), "records": count})
        working = asyncio.get_running_loop().create_task(make_worker(spool).run())
        try:
            await spool.flush()
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
        log.info("moved what a server left", extra={"spool": str(directory), "records": count})
    finally:
        await spool.close()
