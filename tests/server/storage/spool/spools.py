"""What the tests of the spool have in common."""

from __future__ import annotations

import shutil
from itertools import count
from pathlib import Path

import msgspec

from fabric_server.storage.spool.frames import encode_frame
from fabric_server.storage.spool.spool import Spool
from ledger.records import LEDGER, LedgerEntry
from tests.contracts.samples import entry

MIB = 1 << 20
SIZE = len(encode_frame(msgspec.json.encode(entry(100))))
"""Bytes of one ledger entry in a file; those numbered 100 to 999 are all alike."""


def crashed(directory: Path) -> Path:
    """The files as a kill at this moment would leave them."""
    for number in count():
        copy = directory.with_name(f"{directory.name.partition('+')[0]}+{number}")
        if not copy.exists():
            return Path(shutil.copytree(directory, copy))
    raise AssertionError


def segments(directory: Path, topic: str = LEDGER) -> list[Path]:
    return sorted((directory / topic).glob("*.log"))


def publish(spool: Spool, numbers: range) -> None:
    for number in numbers:
        spool.publish(LEDGER, entry(number))


def number_of(record: LedgerEntry) -> int:
    return int(record.request_id.removeprefix("req_"))


async def take(spool: Spool, most: int = 100_000) -> list[int]:
    return [number_of(record) for record in (await spool.take(1, most, 0)).ledger]


async def take_all(spool: Spool) -> list[int]:
    """Until there is nothing, settling each batch."""
    numbers: list[int] = []
    while True:
        batch = await spool.take(1, 1000, 0)
        await spool.commit()
        numbers += [number_of(record) for record in batch.ledger]
        if not batch.size:
            return numbers


async def reopened(directory: Path) -> list[int]:
    """What a new process would be given."""
    spool = Spool.open(directory, limit=MIB)
    try:
        return await take_all(spool)
    finally:
        await spool.close()
